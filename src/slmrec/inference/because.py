"""Reasons for recommendations: the items of the history that carry a score, found by leaving each of them out."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from slmrec.errors import ConfigError
from slmrec.inference.ranking import Ranked, Ranker
from slmrec.models.baselines import Cooccurrence, Popularity

NUM_REASONS = 3
"""Number of reasons of `because=True`."""
_BATCH_HISTORIES = 256
_NOISE = 1e-5
"""Differences up to this share of the user's largest score are rounding errors."""


class Reason(NamedTuple):
    """Item of the history that carries a part of a score."""

    item: int
    difference: float | None
    """Score with the history that the model reads, minus the score without this item. None: the item is the only one
    that the model reads, and it gives no score without a history."""
    share: float
    """Difference as a share of all positive differences."""


class _Variant(NamedTuple):
    """Items that the model reads of a history, all or all but one."""

    user: int
    items: Sequence[int]
    times: Sequence[int] | None


def num_reasons_of(because: bool | int) -> int:
    """Return the number of reasons that a request asks for.

    Raises:
        ConfigError: It is neither True, nor False, nor a number above 0.
    """
    if isinstance(because, bool):
        return NUM_REASONS if because else 0
    if not isinstance(because, int) or because < 1:
        raise ConfigError(f"because is {because!r}, expected True, False, or the number of reasons, at least 1")
    return because


def reasons_of(
    ranker: Ranker,
    histories: Sequence[Sequence[int]],
    times: Sequence[Sequence[int]] | None,
    ranked: Sequence[Ranked],
    num_reasons: int,
) -> list[list[list[Reason]]]:
    """Return for each user and each ranked item its reasons, the largest difference first.

    An item is left out wherever it occurs among the items that the model reads, the newest `max_history_items`; the
    other items and their times stay, and no older item moves in. Only items that raise the score are reasons. The
    baselines score a user without history too: by popularity.

    Args:
        ranker: Ranker that ranked the items.
        histories: Items of each user's history, oldest first; users without history have no reasons.
        times: Times of these items, for a model that reads them.
        ranked: Ranked items of each user.
        num_reasons: Largest number of reasons of an item.
    """
    longest = ranker.model.max_history_items
    scores: list[list[Tensor]] = [[] for _ in histories]
    variants = (
        variant
        for user, history in enumerate(histories)
        if len(history) and len(ranked[user])
        for variant in _variants(
            _Variant(user, history[-longest:], None if times is None else times[user][-longest:]),
            isinstance(ranker.model.model, Popularity | Cooccurrence),
        )
    )
    while chunk := list(islice(variants, _BATCH_HISTORIES)):
        own_times = [variant.times or [] for variant in chunk]
        encoded = ranker.encode([variant.items for variant in chunk], None if times is None else own_times)
        for user, rows in groupby(range(len(chunk)), key=lambda row: chunk[row].user):
            scores[user].append(ranker.score(encoded.select(list(rows)), ranked[user].items.tolist()))
    return [
        _reasons(_distinct(history[-longest:]), torch.cat(own), num_reasons) if own else [[] for _ in items]
        for history, own, items in zip(histories, scores, ranked, strict=True)
    ]


def because_column(reasons: Sequence[Sequence[Sequence[Reason]]], item_ids: pa.Array) -> pa.Array:
    """Return lists of `item_id, difference, share`, a row for each ranked item, given the ids of all items."""
    flat = [reason for user in reasons for item in user for reason in item]
    sizes = [len(item) for user in reasons for item in user]
    values = pa.StructArray.from_arrays(
        [
            item_ids.take(pa.array([reason.item - 1 for reason in flat], pa.int64())),
            pa.array([reason.difference for reason in flat], pa.float32()),
            pa.array([reason.share for reason in flat], pa.float32()),
        ],
        ["item_id", "difference", "share"],
    )
    offsets = [0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _variants(whole: _Variant, scores_nobody: bool) -> Iterator[_Variant]:
    """Yield a history, and then without each of its items.

    Args:
        whole: The history.
        scores_nobody: The model scores a user without history; padding, which it ignores, stands for such a history.
    """
    yield whole
    for left_out in _distinct(whole.items):
        kept = [place for place, item in enumerate(whole.items) if item != left_out]
        if kept:
            times = whole.times
            yield _Variant(
                whole.user, [whole.items[place] for place in kept], times and [times[place] for place in kept]
            )
        elif scores_nobody:
            yield _Variant(whole.user, [0], whole.times and [0])


def _distinct(items: Sequence[int]) -> list[int]:
    """Return the distinct items, newest first."""
    return list(dict.fromkeys(reversed(items)))


def _reasons(left_out: list[int], scores: Tensor, num_reasons: int) -> list[list[Reason]]:
    """Return the reasons for each of K items.

    Args:
        left_out: M items of the history.
        scores: (1+M, K) scores with the whole history and without each item; (1, K) if there is nothing without it.
        num_reasons: Largest number of reasons of an item.
    """
    if len(scores) == 1:
        return [[Reason(left_out[0], None, 1.0)] for _ in range(scores.shape[1])]
    differences = scores[0] - scores[1:]
    differences = differences.where(differences > _NOISE * scores.abs().max(), 0.0)
    shares = differences / differences.sum(dim=0).clamp(min=torch.finfo(scores.dtype).tiny)
    order = differences.argsort(dim=0, descending=True, stable=True)[:num_reasons]
    return [
        [
            Reason(left_out[place], float(differences[place, column]), float(shares[place, column]))
            for place in order[:, column].tolist()
            if differences[place, column] > 0
        ]
        for column in range(scores.shape[1])
    ]
