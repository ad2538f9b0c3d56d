"""Score of the items of the history, fitted on validation after training.

A score that is trained with the other weights takes over part of what these would learn from the items of the history.
One number that is fitted afterwards ranks as well without excluding the history, and leaves the training as it is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slmrec.data.batching import collate
from slmrec.data.dataset import Ints, Samples
from slmrec.evaluation.rank import EncoderScorer, scored
from slmrec.models.model import Model
from slmrec.pipeline.validation import EVAL_BATCH
from slmrec.processes import on_main

MAX_SCORE = 30.0
"""Largest absolute value of a fitted score, which moves an item to either end of any list."""
_HALVINGS = 40
"""Number of times that the interval of the score is halved."""


class _Logits(NamedTuple):
    """Logits of some samples, reduced to what their likelihood as a function of the score of the history needs."""

    others: Tensor
    """(b,) logarithm of the sum of exp(logit) over the items outside the history."""
    history: Tensor
    """(b, L) logits of the items of the history, -inf at padding and where an item occurs again."""
    counts: Tensor
    """(b, L) number of times that the item occurs in the history."""
    targets: Tensor
    """(b,) number of times that the target occurs in the history."""


def fit_repeat_score(model: Model, samples: Samples) -> float:
    """Set the score of the items of the history to that under which the targets are most likely among all items.

    An item that occurs n times in the history receives the score n times. The likelihood is concave in the score, so
    that its maximum is where its derivative is zero. All processes of a run call this function.

    Args:
        model: Model with such a score; its other scores are read as logits.
        samples: Validation samples.

    Returns:
        The score, between -30 and 30; about -30 where no target is in its history.

    Raises:
        TrainingError: Scores of a user are not finite.
    """
    model.set_repeat_score(0.0)
    score = on_main(lambda: _most_likely(model, samples))
    model.set_repeat_score(score)
    return score


def _most_likely(model: Model, samples: Samples) -> float:
    blocks = [
        _logits(model, samples, rows, scores)
        for rows, scores in scored(EncoderScorer(model), samples, EVAL_BATCH, shared=False)
    ]
    logits = _Logits(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
    low, high = -MAX_SCORE, MAX_SCORE
    for _ in range(_HALVINGS):
        score = (low + high) / 2
        if _derivative(logits, score) > 0:
            low = score
        else:
            high = score
    return (low + high) / 2


def _logits(model: Model, samples: Samples, rows: Ints, scores: Tensor) -> _Logits:
    """Return the logits of some samples from their scores (b, V+1)."""
    batch = collate(samples, rows, model.max_history_items).to(scores.device)
    items = batch.histories.items
    items = torch.nn.functional.pad(items, (0, model.max_history_items - items.shape[1])).sort(dim=1).values
    counts = torch.zeros_like(scores).scatter_add_(1, items, torch.ones_like(items, dtype=scores.dtype))
    counts[:, 0] = 0
    is_repeated = torch.nn.functional.pad(items[:, 1:] == items[:, :-1], (1, 0))
    return _Logits(
        scores.where(counts == 0, -torch.inf).logsumexp(dim=1).double(),
        scores.gather(1, items).where((items > 0) & ~is_repeated, -torch.inf).double(),
        counts.gather(1, items).double(),
        counts.gather(1, batch.targets[:, None]).squeeze(1).double(),
    )


def _derivative(logits: _Logits, score: float) -> float:
    """Return the derivative of the log-likelihood of the targets by the score."""
    history = logits.history + score * logits.counts
    probabilities = torch.softmax(torch.cat([logits.others[:, None], history], dim=1), dim=1)[:, 1:]
    return float((logits.targets - (probabilities * logits.counts).sum(dim=1)).sum())
