"""Weights of the models in a teacher, fitted jointly on validation.

The scores of each model are divided by one number, their standard deviation, so that the size of a model's logits
decides nothing. Weights of at least 0 with sum 1 are then searched for the best NDCG@10 under the primary protocol.
Finally, all scores are multiplied by one factor, fitted by maximum likelihood. It gives them the scale of logits, which
KL distillation needs. The result is one dot product of concatenated vectors.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slmrec.data.batching import by_length, collate
from slmrec.data.dataset import Dataset
from slmrec.evaluation.rank import eval_mode
from slmrec.inference.freeze import freeze
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model, repeat_bonus
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import EVAL_BATCH, Validation, validation
from slmrec.processes import is_main, on_main, share, total
from slmrec.progress import progress
from slmrec.training.trainer import MONITORED
from slmrec.types import Histories

_LOG = logging.getLogger(__name__)
MAX_USERS = 20_000
"""Largest number of validation users on whom weights are fitted."""
STEPS = (0.2, 0.1, 0.05)
"""Shares that are moved from one model to another, one step size after the other."""
MAX_SCORES = 2**24
"""Number of scores (float32) that are computed at once."""
TOP_K = 10
_FACTORS = 16
"""Number of factors that are tried at once for the scale of the mixed scores."""


class Vectors(NamedTuple):
    """Vectors of one model on the validation users; its scores have a standard deviation of 1."""

    users: Tensor
    """(U, D)."""
    items: Tensor
    """(V+1, D)."""
    deviation: float
    """Standard deviation of the model's own scores, by which `users` was divided."""
    age_scores: Tensor | None = None
    """Scores of the items of the history by their age, divided alike, the last one 0; None: no such term."""


def mix(task: Task, dataset: Dataset, members: Mapping[str, Model]) -> dict[str, float]:
    """Fit the weights of some models, and write their ensemble as the model of the task.

    Args:
        task: The step.
        dataset: The data set.
        members: Models by name, the decoder first if there is one.

    Returns:
        Validation metrics of the ensemble, and the weights.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: model.to(device) for name, model in members.items()}
    fitted_on = validation(task, dataset, MAX_USERS)
    vectors = [model_vectors(model, fitted_on) for model in models.values()]
    weights = dict(zip(models, on_main(lambda: fit_weights(vectors, fitted_on)), strict=True))
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
    _LOG.info("finetune: weights of the models, fitted on validation: %s", shown)
    found = {f"weight/{name}": weight for name, weight in weights.items()}
    kept = {name: weight for name, weight in weights.items() if weight}
    if list(kept) == ["decoder"]:
        return found
    factor = on_main(lambda: fit_factor(vectors, list(weights.values()), fitted_on))
    deviations = dict(zip(models, (one.deviation for one in vectors), strict=True))
    factors = {name: factor * weight / deviations[name] for name, weight in kept.items()}
    ensemble = Ensemble.of({name: models[name] for name in kept}, factors)
    measured_on = validation(task, dataset, task.config.finetune.train.eval_max_users)
    return found | save_ensemble(task, dataset, "finetune", ensemble, measured_on)


def save_ensemble(
    task: Task, dataset: Dataset, section: str, ensemble: Model, measured_on: Validation
) -> dict[str, float]:
    """Write an ensemble as the model of the task, and return its validation metrics."""
    metrics = measured_on.metrics(ensemble)
    _LOG.info("%s: ensemble: valid NDCG@10 %.4f", section, metrics[MONITORED])
    if is_main():
        save_recommender(ensemble, dataset, task.folder, f"SLMRec {section}", metrics, measured_on.protocol)
    return {f"valid/{key}": value for key, value in metrics.items()} | {"num_parameters": ensemble.num_parameters()}


@torch.inference_mode()
def model_vectors(model: Model, users: Validation) -> Vectors:
    """Encode the validation users, and scale their vectors so that scores deviate by 1 within a user."""
    with eval_mode(model):
        frozen = freeze(model, fused=False)
        items = frozen.item_vectors()
        vectors = items.new_zeros(len(users.samples), items.shape[1])
        unit = model.timestamp_unit
        batches = by_length(users.samples, EVAL_BATCH, model.max_history_items, timestamp_unit=unit)
        for rows, batch in share(batches):
            vectors[rows] = frozen.encode(batch.histories).users.float()
    vectors = total(vectors)
    deviation = score_deviation(vectors, items[1:])
    ages = model.age_scores()
    if ages is not None:  # items that are older than the model reads have no such score
        read = ages[torch.arange(model.max_history_items, device=ages.device).clamp(max=len(ages) - 1)]
        ages = torch.cat([read, read.new_zeros(1)]) / deviation
    return Vectors(vectors / deviation, items, deviation, ages)


def score_deviation(users: Tensor, items: Tensor) -> float:
    """Return the standard deviation of scores within a user, as the root of the mean variance over users.

    Args:
        users: (U, D) user vectors.
        items: (V, D) item vectors.

    Example:
        >>> score_deviation(torch.tensor([[2.0]]), torch.tensor([[1.0], [-1.0]]))
        2.0
    """
    centred = (items - items.mean(dim=0)).double()
    covariance = centred.T @ centred / len(items)
    variances = ((users.double() @ covariance) * users.double()).sum(dim=1)
    return max(float(variances.mean().sqrt()), 1e-12)


def fit_weights(vectors: list[Vectors], users: Validation) -> list[float]:
    """Search weights of at least 0 with sum 1 for the best NDCG@10 under the protocol of the validation.

    The search starts from the best of all single models and the uniform mixture, and moves shares from one model to
    another as long as that helps, in ever smaller steps.
    """
    num = len(vectors)
    if num == 1:
        return [1.0]
    unit = round(1 / STEPS[-1])
    with progress("finetune: fitting weights") as advance:

        def best_of(candidates: list[tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
            weights = torch.tensor(candidates, dtype=torch.float32) / unit
            qualities = mixture_ndcg(vectors, weights, users)
            advance(1)
            return max(zip(qualities, candidates, strict=True), key=lambda pair: pair[0])

        uniform = tuple(unit // num + (place < unit % num) for place in range(num))
        singles = [tuple(unit * (place == at) for place in range(num)) for at in range(num)]
        quality, weights = best_of([uniform, *singles])
        for step in STEPS:
            share = round(step * unit)
            while neighbours := list(_moves(weights, share)):
                better, candidate = best_of(neighbours)
                if better <= quality:
                    break
                quality, weights = better, candidate
    return [weight / unit for weight in weights]


def _moves(weights: tuple[int, ...], share: int) -> Iterator[tuple[int, ...]]:
    """Yield the weights after moving a share, or all that is left, from one model to another."""
    for source, target in permutations(range(len(weights)), 2):
        moved = min(share, weights[source])
        if moved:
            change = {source: -moved, target: moved}
            yield tuple(weight + change.get(place, 0) for place, weight in enumerate(weights))


def mixture_ndcg(vectors: list[Vectors], weights: Tensor, users: Validation) -> list[float]:
    """Return NDCG@10 of several mixtures; of tied items half count as ranked before the target.

    Args:
        vectors: Vectors of M models.
        weights: (K, M) weights of K mixtures.
        users: Validation users and the protocol.
    """
    totals = torch.zeros(len(weights), dtype=torch.float64)

    def add(scores: Tensor, targets: Tensor, is_candidate: Tensor) -> None:
        mixed = torch.tensordot(weights.to(scores), scores, dims=1)
        own = mixed.gather(2, targets[None, :, None].expand(len(weights), -1, 1))
        above = ((mixed > own) & is_candidate).sum(dim=2)
        ties = ((mixed == own) & is_candidate).sum(dim=2)
        ranks = above.double() + 0.5 * ties
        gains = 1 / torch.log2(ranks + 2)
        totals.add_(torch.where(ranks < TOP_K, gains, 0.0).sum(dim=1).cpu())

    _walk(vectors, users, len(weights), add)
    return (totals / len(users.samples)).tolist()


def fit_factor(vectors: list[Vectors], weights: list[float], users: Validation) -> float:
    """Return the factor of the mixed scores under which the validation items are most likely among all items."""
    chosen = torch.tensor(weights)
    low, high = 0.1, 100.0
    for _ in range(2):
        factors = torch.logspace(math.log10(low), math.log10(high), _FACTORS)
        totals = torch.zeros(_FACTORS, dtype=torch.float64)

        def add(scores: Tensor, targets: Tensor, _: Tensor, factors: Tensor = factors, totals: Tensor = totals) -> None:
            mixed = torch.tensordot(chosen.to(scores), scores, dims=1)
            mixed[:, 0] = -torch.inf
            for place, factor in enumerate(factors.tolist()):
                likelihood = torch.log_softmax(factor * mixed, dim=1).gather(1, targets[:, None])
                totals[place] += likelihood.double().sum().cpu()

        _walk(vectors, users, 1, add)
        best = int(totals.argmax())
        low, high = float(factors[max(0, best - 1)]), float(factors[min(_FACTORS - 1, best + 1)])
    return math.sqrt(low * high)


@torch.inference_mode()
def _walk(
    vectors: list[Vectors], users: Validation, num_mixtures: int, visit: Callable[[Tensor, Tensor, Tensor], None]
) -> None:
    """Call `visit` with scores (M, b, V+1), targets (b,), and the other candidates (b, V+1) of some users at a time."""
    samples, device, width = users.samples, vectors[0].items.device, len(vectors[0].items)
    size = max(1, MAX_SCORES // (width * max(len(vectors), num_mixtures)))
    for start in range(0, len(samples), size):
        rows = np.arange(start, min(start + size, len(samples)))
        batch = collate(samples, rows, int(samples.lengths(rows).max())).to(device)
        scores = torch.stack([_scores(one, slice(start, start + size), batch.histories) for one in vectors])
        visit(scores, batch.targets, _candidates(users, rows, batch.histories.items, batch.targets, width))


def _scores(vectors: Vectors, rows: slice, histories: Histories) -> Tensor:
    """Return the scores (b, V+1) of one model for some users."""
    scores = vectors.users[rows] @ vectors.items.T
    if vectors.age_scores is not None:
        bonus = repeat_bonus(vectors.age_scores, histories, every_position=False)
        scores.scatter_add_(1, bonus.items, bonus.scores)
    return scores


def _candidates(users: Validation, rows: np.ndarray, history: Tensor, targets: Tensor, width: int) -> Tensor:
    """Return (b, V+1) whether an item competes with the target under the protocol."""
    if users.negatives is not None:
        drawn = torch.from_numpy(users.negatives[users.samples.spans(rows)[2]].astype(np.int64)).to(history.device)
        mask = history.new_zeros(len(rows), width, dtype=torch.bool).scatter_(1, drawn, True)
    else:
        mask = history.new_ones(len(rows), width, dtype=torch.bool)
        if users.protocol == "full_history_excluded":
            mask.scatter_(1, history, False)
    mask[:, 0] = False
    return mask.scatter_(1, targets[:, None], False)
