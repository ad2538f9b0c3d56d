"""Weights of the models in a teacher, fitted on validation."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import VectorScorer, eval_mode, evaluate_scorer, validate
from slmrec.inference.freeze import freeze
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model
from slmrec.pipeline.fitting import EVAL_BATCH, validation_users
from slmrec.pipeline.stage import Task
from slmrec.training.trainer import MONITORED

_LOG = logging.getLogger(__name__)
SHARES = tuple(tenths / 10 for tenths in range(10))
"""Weights that are tried for a model; the models before it share the rest of 1."""
_PROTOCOL = "full_history_excluded"


def mix(task: Task, dataset: Dataset, members: Mapping[str, Model]) -> dict[str, float]:
    """Fit the weights of some models, and write their ensemble as the model of the task.

    Args:
        task: The step.
        dataset: The data set.
        members: Models by name, the decoder first if there is one.

    Returns:
        Validation metrics of the ensemble, and its weights.
    """
    device = next(iter(members.values())).device
    models = {name: model.to(device) for name, model in members.items()}
    validation = validation_users(task, dataset, task.config.finetune.train)
    weights = dict(zip(models, fit_weights(list(models.values()), validation), strict=True))
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
    _LOG.info("finetune: weights of the models, fitted on validation: %s", shown)
    kept = {name: weight for name, weight in weights.items() if weight or name == "decoder"}
    if list(kept) == ["decoder"]:
        return {}
    ensemble = Ensemble.of({name: models[name] for name in kept}, kept)
    found = {f"weight/{name}": weight for name, weight in kept.items() if name != "decoder"}
    return found | save_ensemble(task, dataset, "finetune", ensemble, validation)


def save_ensemble(
    task: Task, dataset: Dataset, section: str, ensemble: Ensemble, validation: Samples
) -> dict[str, float]:
    """Write an ensemble in the place of its decoder, and return its validation metrics."""
    metrics = validate(ensemble, validation, EVAL_BATCH)
    _LOG.info("%s: ensemble: valid NDCG@10 %.4f", section, metrics[MONITORED])
    save_recommender(ensemble, dataset, task.folder, f"SLMRec {section}", metrics)
    sizes = {"num_parameters": float(ensemble.num_parameters())}
    return {f"valid/{key}": value for key, value in metrics.items()} | sizes


def fit_weights(models: Sequence[Model], samples: Samples) -> list[float]:
    """Return weights with sum 1, found for one model after the other; the models before it share the rest."""
    users, items = zip(*(_vectors(model, samples) for model in models), strict=True)

    def quality(weights: list[float]) -> float:
        weighted = torch.cat([weight * vectors for weight, vectors in zip(weights, users, strict=True)], dim=1)
        scorer = VectorScorer(weighted, torch.cat(items, dim=1), models[0].max_history_items)
        ranks = evaluate_scorer(scorer, samples, batch_size=EVAL_BATCH, protocols=(_PROTOCOL,))
        return ranking_metrics(ranks[_PROTOCOL])[MONITORED]

    weights = [1.0] + [0.0] * (len(models) - 1)
    for place in range(1, len(models)):
        tried = [[share if at == place else (1 - share) * w for at, w in enumerate(weights)] for share in SHARES]
        weights = max(tried, key=quality)
    return weights


@torch.inference_mode()
def _vectors(model: Model, samples: Samples) -> tuple[Tensor, Tensor]:
    """Return (num_samples, D) user vectors and (V+1, D) item vectors."""
    with eval_mode(model):
        frozen = freeze(model, fused=False)
        items = frozen.item_vectors()
        users = items.new_empty(len(samples), items.shape[1])
        for rows, batch in by_length(samples, EVAL_BATCH, model.max_history_items):
            users[rows] = frozen.encode(batch.histories).users.float()
    return users, items
