"""What is read off the models of a depth study, each reading a stage of its own; all of it on the validation split."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import Progress
from torch import Tensor

from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import Ints, ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, RankingProtocol, Scorer, VectorScorer, evaluate_scorer, throughput
from slmrec.models.build import student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender
from slmrec.pipeline.fitting import EVAL_BATCH, training_samples, validation_users
from slmrec.pipeline.stage import Task
from slmrec.studies.layer_similarity import cka, layer_cosines
from slmrec.studies.linear_probes import LinearHeads, apply_head

PROTOCOLS: tuple[RankingProtocol, ...] = ("full_history_excluded", "full")
TIMED_USERS = 1000
Readings = dict[str, Any]


def validate_model(task: Task) -> dict[str, float]:
    """How well a model ranks the validation items, and how fast."""
    opened = _open(task)
    scorer = EncoderScorer(opened.model)
    timed = opened.samples.take(np.arange(min(TIMED_USERS, len(opened.samples))))
    speed = throughput({"model": scorer}, timed, batch_size=EVAL_BATCH)["model"]
    metrics, ranks = _metrics(scorer, opened.samples)
    table = pa.table({"user": opened.samples.users()} | ranks)
    pq.write_table(table, task.folder / "per_user.parquet")
    _write(task, {"metrics": metrics, "layers": opened.model.config.layers, "infer_s_per_1000_users": 1000 / speed})
    return _flat(metrics)


@torch.inference_mode()
def read_layers(task: Task) -> dict[str, float]:
    """The state after every layer: scored by the model's own head and by a fitted one, and compared with the others."""
    opened = _open(task)
    heads = _fitted_heads(task, opened)
    states, users = _states(opened.model, opened.samples)
    items, readings = opened.model.item_vectors().float(), []
    for depth in range(1, opened.model.num_layers + 1):
        fitted = apply_head(heads[depth - 1], opened.model.final_norm(states[depth].to(opened.model.device)))
        for head, vectors in (("final", users[depth - 1]), ("fitted", fitted)):
            scorer = VectorScorer(vectors, items, opened.model.max_history_items)
            metrics, _ = _metrics(scorer, opened.samples)
            readings.append({"num_layers": depth, "head": head, "metrics": metrics})
    some = states[:, : task.config.depth.similarity_users]
    similarity = {"cosine": layer_cosines(states).tolist(), "cka": cka(some).tolist(), "num_users": some.shape[1]}
    _write(task, {"read_early": readings, "similarity": similarity})
    return {}


def without_layer(task: Task, layer: int) -> dict[str, float]:
    """How well the model ranks with one of its layers left out, without further training."""
    opened = _open(task)
    kept = tuple(number for number in range(opened.model.num_layers) if number != layer)
    model = student_from(opened.model, kept, item_dropout=0.0, train_items=False).to(opened.model.device)
    users = np.arange(min(task.config.depth.drop_users, len(opened.samples)))
    metrics, _ = _metrics(EncoderScorer(model), opened.samples.take(users))
    _write(task, {"without": layer, "num_users": len(users), "metrics": metrics})
    return _flat(metrics)


@dataclass(frozen=True)
class _Opened:
    """A trained model of the study, and whom it is asked about."""

    model: DecoderRecommender
    dataset: Dataset
    samples: Samples
    """The validation users of its training."""


def _open(task: Task) -> _Opened:
    model, _ = load_recommender(task.output / "finetune")
    assert isinstance(model, DecoderRecommender)  # the recipe has no ensemble
    dataset = Dataset.load(task.output / "prepare")
    samples = validation_users(task, dataset, task.config.finetune.train)
    return _Opened(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), dataset, samples)


def _metrics(scorer: Scorer, samples: Samples) -> tuple[dict[str, dict[str, float]], dict[str, Ints]]:
    """By protocol: the metrics, and the users' ranks."""
    ranks = evaluate_scorer(scorer, samples, batch_size=EVAL_BATCH, protocols=PROTOCOLS)
    return {name: ranking_metrics(found) for name, found in ranks.items()}, ranks


def _states(model: DecoderRecommender, samples: Samples) -> tuple[Tensor, Tensor]:
    """States (layers + 1, U, H), first what the first layer reads, and the users (layers, U, D) read off them."""
    states = users = torch.empty(0)
    for rows, found in _encoded(model, samples, every_position=False, title="the states after every layer"):
        early = torch.stack([model.early_exit(of_layer) for of_layer in found[1:]])
        if not len(states):
            states = torch.empty(len(found), len(samples), found.shape[-1])
            users = torch.empty(len(early), len(samples), early.shape[-1])
        states[:, rows], users[:, rows] = found.cpu(), early.cpu()
    return states, users


def _fitted_heads(task: Task, opened: _Opened) -> Tensor:
    """(layers, H + 1, D): to each layer's state the head that best foretells the final user vector.

    Fitted by least squares on training samples. Source: the idea is that of Belrose et al. 2023, the tuned lens.
    """
    model, settings = opened.model, task.config
    data = training_samples(opened.dataset, settings.finetune.supervision, model.max_history_items)
    size = min(settings.depth.head_samples, len(data.samples))
    chosen = data.samples.take(np.random.default_rng(settings.seed).choice(len(data.samples), size, replace=False))
    heads = LinearHeads(model.num_layers, model.hidden_size, model.score.out_features)
    for _, states in _encoded(model, chosen, data.every_position, title="a head for every layer"):
        heads.add(model.final_norm(states[1:]), model.early_exit(states[-1]))
    return heads.solve().to(opened.model.device)


def _encoded(
    model: DecoderRecommender, samples: Samples, every_position: bool, title: str
) -> Iterator[tuple[Ints, Tensor]]:
    """Rows of the samples and their states (layers + 1, N, H), batch by batch."""
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"depth: {title}", total=len(samples))
        prefix = model.prefill()
        for rows, batch in by_length(samples, EVAL_BATCH, model.max_history_items, every_position):
            histories = batch.histories.to(model.device)
            yield rows, model.hidden_states_of_layers(histories, every_position=every_position, prefix=prefix)
            progress.advance(bar, len(rows))


def _write(task: Task, readings: Readings) -> None:
    (task.folder / "readings.json").write_text(json.dumps(readings, indent=1) + "\n", encoding="utf-8")


def _flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """As metrics.json has them."""
    return {f"valid/{protocol}/{name}": value for protocol, by in metrics.items() for name, value in by.items()}
