"""Ranking under boosts, caps and diversity: exact, a dense matrix of scores for a few users at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slmrec.inference.rules.effect import Cap
from slmrec.topk import MAX_RANKED_SCORES, best_columns
from slmrec.types import ItemBonus

_MIN_POOL, _POOL_PER_ITEM, _GROWTH = 100, 10, 8
"""Caps and diversity choose among the best max(100, 10k) items, and among 8 times as many where caps leave fewer."""


def rank_selected(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    excluded: Tensor | None = None,
    allowed: Tensor | None = None,
    bonus: ItemBonus | None = None,
    boost: Tensor | None = None,
    caps: Sequence[Cap] = (),
    diversity: float = 0.0,
    vectors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k items of each user, and their scores after boosts, in the order in which they are chosen.

    Boosts come first, then the items that are excluded are left out. The list is then built item by item: each time
    the best item that no cap forbids, or with diversity the one with the highest marginal relevance (MMR).

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors; row 0 is padding.
        k: Number of items, at least 1.
        excluded: (N, E) items that a user must not get, padded with 0.
        allowed: (V+1,) bool, items that users may get; None: all.
        bonus: Term added to the scores of a few items of each user.
        boost: (V+1,) term added to all scores, in standard deviations of the user's scores.
        caps: Largest numbers of items of one value.
        diversity: Weight of diversity, from 0 to 1.
        vectors: (V+1, E) vectors whose cosine is the similarity of items; only diversity reads them.

    Returns:
        Scores and items, each (N, min(k, V)); where fewer items are left, the score is -inf and the item is 0.

    Raises:
        ValueError: A score is NaN.

    Example:
        >>> one, items = torch.ones(1, 1), torch.tensor([[0.0], [4.0], [3.0], [2.0]])
        >>> rank_selected(one, items, 2, caps=[Cap(torch.tensor([0, 1, 1, 2]), 1)])[1].tolist()
        [[1, 3]]
    """
    num_rows = max(1, MAX_RANKED_SCORES // len(items))
    parts = []
    for start in range(0, len(users), num_rows):
        rows = slice(start, start + num_rows)
        scores = users[rows].float() @ items.float().T
        if bonus is not None:
            own = bonus.select(rows)
            scores.scatter_add_(1, own.items, own.scores.to(scores.dtype))
        if scores[:, 1:].isnan().any():
            raise ValueError("a score is NaN, expected numbers")
        if boost is not None:
            scores += scores[:, 1:].std(dim=1, correction=0, keepdim=True) * boost
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
        if excluded is not None:
            scores.scatter_(1, excluded[rows], -torch.inf)
        scores[:, 0] = -torch.inf
        parts.append(_select(scores, min(k, len(items) - 1), caps, diversity, vectors))
    if not parts:
        return users.new_zeros(0, min(k, len(items) - 1)), torch.zeros(0, min(k, len(items) - 1), dtype=torch.int64)
    values, best = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, best.masked_fill(values.isneginf(), 0)


def _select(
    scores: Tensor, k: int, caps: Sequence[Cap], diversity: float, vectors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Choose k items of each row of scores (N, V+1), where -inf marks items that cannot be chosen."""
    num_rows, width = scores.shape
    values = scores.new_full((num_rows, k), -torch.inf)
    best = torch.zeros(num_rows, k, dtype=torch.int64, device=scores.device)
    rows = torch.arange(num_rows, device=scores.device)
    size = max(_MIN_POOL, _POOL_PER_ITEM * k) if caps or diversity else k
    while len(rows):
        pool_scores, pool = _best(scores[rows], min(size, width))
        if caps or diversity:
            places = _choose(pool_scores, pool, k, caps, diversity, vectors)
            is_missing = places < 0
            own = pool_scores.gather(1, places.clamp(min=0)).masked_fill(is_missing, -torch.inf)
            pool = pool.gather(1, places.clamp(min=0))
        else:
            own, is_missing = pool_scores, pool_scores.isneginf()
        values[rows, : own.shape[1]], best[rows, : own.shape[1]] = own, pool
        may_have_more = is_missing.any(dim=1) & ~pool_scores[:, -1].isneginf()
        rows = rows[may_have_more] if size < width else rows[:0]
        size *= _GROWTH
    return values, best


def _best(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the best scores and their columns, the smaller column first among equal scores."""
    columns = best_columns(scores, size)
    ordered = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return ordered.values, columns.gather(1, ordered.indices)


def _choose(
    scores: Tensor, pool: Tensor, k: int, caps: Sequence[Cap], diversity: float, vectors: Tensor | None
) -> Tensor:
    """Return the places (N, k) in the pool, in the order in which items are chosen; -1 where no item is left."""
    if diversity and vectors is not None:
        num_rows = max(1, MAX_RANKED_SCORES // (pool.shape[1] * vectors.shape[1]))
        chunks = zip(torch.split(scores, num_rows), torch.split(pool, num_rows), strict=True)
        return torch.cat([_greedy(own, items, k, caps, diversity, vectors) for own, items in chunks])
    return _greedy(scores, pool, k, caps, 0.0, None)


def _greedy(
    scores: Tensor, pool: Tensor, k: int, caps: Sequence[Cap], diversity: float, vectors: Tensor | None
) -> Tensor:
    is_open = ~scores.isneginf()
    aims = scores
    if vectors is not None:
        relevance = (1.0 - diversity) * _standardised(scores, is_open)
        directions = F.normalize(vectors[pool].float(), dim=2)
        nearest = torch.zeros_like(scores)
        aims = relevance
    own_codes = [cap.codes[pool] for cap in caps]
    num_used = [torch.zeros_like(codes, dtype=torch.int32) for codes in own_codes]
    chosen = torch.full((len(scores), min(k, scores.shape[1])), -1, device=scores.device)
    for number in range(chosen.shape[1]):
        place = aims.masked_fill(~is_open, -torch.inf).argmax(dim=1, keepdim=True)
        is_found = is_open.gather(1, place)
        if not is_found.any():
            break
        chosen[:, number] = place.where(is_found, -1)[:, 0]
        is_open.scatter_(1, place, False)
        for row, (cap, codes) in enumerate(zip(caps, own_codes, strict=True)):
            code = codes.gather(1, place)
            num_used[row] += (codes == code) & (code > 0) & is_found
            is_open &= num_used[row] < cap.limit
        if vectors is not None:
            newest = directions.gather(1, place[:, :, None].expand(-1, -1, directions.shape[2]))
            similarity = (directions @ newest.transpose(1, 2))[:, :, 0]
            nearest = similarity if number == 0 else torch.maximum(nearest, similarity)
            aims = relevance - diversity * nearest
    return chosen


def _standardised(scores: Tensor, is_open: Tensor) -> Tensor:
    """Return scores with mean 0 and standard deviation 1 over the open items of each row."""
    number = is_open.sum(dim=1, keepdim=True).clamp(min=1)
    known = scores.masked_fill(~is_open, 0.0)
    centred = (known - known.sum(dim=1, keepdim=True) / number).masked_fill(~is_open, 0.0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / number).sqrt()
    return centred / deviation.clamp(min=torch.finfo(scores.dtype).tiny)
