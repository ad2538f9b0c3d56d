"""Measurements of the study of depth on the validation split; each is a step with a folder of its own."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import Ints, ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, Scorer, VectorScorer, evaluate_scorer, throughput
from slmrec.files import write_json
from slmrec.models.build import student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender
from slmrec.pipeline.fitting import training_samples
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import EVAL_BATCH, Validation, validation
from slmrec.progress import progress
from slmrec.studies.layer_similarity import cka, layer_cosines
from slmrec.studies.linear_probes import LinearHeads, apply_head

PROTOCOLS = ("full_history_excluded", "full")
"""Protocols that are measured besides the primary one, by which the study decides."""
TIMED_USERS = 1000
"""Number of users over whom the speed of a model is measured."""
Metrics = dict[str, dict[str, float]]
"""Metrics by protocol."""


def validate_model(task: Task) -> dict[str, float]:
    """Measure the ranking metrics and the speed of a model."""
    study = _load(task)
    scorer = EncoderScorer(study.model)
    timed = study.samples.take(np.arange(min(TIMED_USERS, len(study.samples))))
    speed = throughput({"model": scorer}, timed, batch_size=EVAL_BATCH)["model"]
    metrics, ranks = _metrics(study, scorer)
    table = pa.table({"user": study.samples.users()} | ranks)
    pq.write_table(table, task.folder / "per_user.parquet")
    _write(task, {"metrics": metrics, "layers": study.model.config.layers, "infer_s_per_1000_users": 1000 / speed})
    return _flat(metrics)


@torch.inference_mode()
def analyse_layers(task: Task) -> dict[str, float]:
    """Rank by the hidden states after every layer, and compare these states with each other.

    The states are scored by the model's own head (early exit) and by a head that is fitted to each layer.
    """
    study = _load(task)
    model, heads = study.model, _fitted_heads(task, study)
    states, users = _hidden_states(model, study.samples)
    items, early_exits = model.item_vectors().float(), []
    for depth in range(1, model.num_layers + 1):
        fitted = apply_head(heads[depth - 1], model.final_norm(states[depth].to(model.device)))
        for head, vectors in (("final", users[depth - 1]), ("fitted", fitted)):
            metrics, _ = _metrics(study, VectorScorer(vectors, items, model.max_history_items))
            early_exits.append({"num_layers": depth, "head": head, "metrics": metrics})
    some = states[:, : task.config.depth.similarity_users]
    similarity = {"cosine": layer_cosines(states).tolist(), "cka": cka(some).tolist(), "num_users": some.shape[1]}
    _write(task, {"early_exit": early_exits, "similarity": similarity})
    return {}


def validate_without_layer(task: Task, layer: int) -> dict[str, float]:
    """Measure the ranking metrics of a model without one of its layers, without further training."""
    study = _load(task)
    kept = tuple(number for number in range(study.model.num_layers) if number != layer)
    model = student_from(study.model, kept, item_dropout=0.0, train_items=False).to(study.model.device)
    users = np.arange(min(task.config.depth.drop_users, len(study.samples)))
    metrics, _ = _metrics(study, EncoderScorer(model), study.samples.take(users))
    _write(task, {"without": layer, "num_users": len(users), "metrics": metrics})
    return _flat(metrics)


class _Study(NamedTuple):
    """A trained model and the data on which it is measured."""

    model: DecoderRecommender
    dataset: Dataset
    validation: Validation
    """Validation of its training: users and primary protocol."""

    @property
    def samples(self) -> Samples:
        return self.validation.samples


def _load(task: Task) -> _Study:
    model, _ = load_recommender(task.output / "finetune")  # a decoder, since the recipe has no ensemble
    dataset = Dataset.load(task.output / "prepare")
    users = validation(task, dataset, task.config.finetune.train.eval_max_users)
    return _Study(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), dataset, users)


def _metrics(study: _Study, scorer: Scorer, samples: Samples | None = None) -> tuple[Metrics, dict[str, Ints]]:
    """Return the metrics and the ranks of the users, all of them or those of `samples`, by protocol."""
    ranks = evaluate_scorer(
        scorer,
        study.samples if samples is None else samples,
        batch_size=EVAL_BATCH,
        protocols=tuple(dict.fromkeys((study.validation.protocol, *PROTOCOLS))),
        negatives=study.validation.negatives,
    )
    return {name: ranking_metrics(own) for name, own in ranks.items()}, ranks


def _hidden_states(model: DecoderRecommender, samples: Samples) -> tuple[Tensor, Tensor]:
    """Return hidden states and user vectors at the newest position.

    Returns:
        States (layers + 1, U, H), the first of which is the input of the first layer, and the user vectors
        (layers, U, D) of an early exit after each layer.
    """
    states = users = torch.empty(0)
    for rows, batch_states in _encoded(model, samples, every_position=False, title="hidden states"):
        exits = torch.stack([model.early_exit(layer_states) for layer_states in batch_states[1:]])
        if not len(states):
            states = torch.empty(len(batch_states), len(samples), batch_states.shape[-1])
            users = torch.empty(len(exits), len(samples), exits.shape[-1])
        states[:, rows], users[:, rows] = batch_states.cpu(), exits.cpu()
    return states, users


def _fitted_heads(task: Task, study: _Study) -> Tensor:
    """Return affine maps (layers, H + 1, D) that predict the final user vector from the state after each layer.

    They are fitted by least squares on training samples. Source: tuned lens, Belrose et al. 2023.
    """
    model, settings = study.model, task.config
    data = training_samples(study.dataset, settings.finetune.supervision, model.max_history_items)
    size = min(settings.depth.head_samples, len(data.samples))
    chosen = data.samples.take(np.random.default_rng(settings.seed).choice(len(data.samples), size, replace=False))
    heads = LinearHeads(model.num_layers, model.hidden_size, model.score.out_features)
    for _, states in _encoded(model, chosen, data.every_position, title="fitting a head for every layer"):
        heads.add(model.final_norm(states[1:]), model.early_exit(states[-1]))
    return heads.solve().to(model.device)


def _encoded(
    model: DecoderRecommender, samples: Samples, every_position: bool, title: str
) -> Iterator[tuple[Ints, Tensor]]:
    """Yield sample numbers and their hidden states (layers + 1, N, H), batch by batch."""
    prefix = model.prefill()
    with progress(f"depth: {title}", total=len(samples)) as advance:
        for rows, batch in by_length(samples, EVAL_BATCH, model.max_history_items, every_position):
            histories = batch.histories.to(model.device)
            yield rows, model.hidden_states_of_layers(histories, every_position=every_position, prefix=prefix)
            advance(len(rows))


def _write(task: Task, measurements: dict[str, Any]) -> None:
    write_json(task.folder / "measurements.json", measurements)


def _flat(metrics: Metrics) -> dict[str, float]:
    """Return the metrics in the form of metrics.json."""
    return {f"valid/{protocol}/{name}": value for protocol, by in metrics.items() for name, value in by.items()}
