"""Top-k items of many users over a large catalogue, in chunks; the B x V matrix of scores never exists."""

import torch
from torch import Tensor

from slmrec.types import ItemBonus

MAX_RANKED_SCORES = 2**23
"""Scores (float32) that `top_k` computes at once, 32 MiB."""
_MAX_RANKED_ROWS = 256  # Few rows make wide chunks, and so few merges of each row.
_ALIGNED = 64
"""Rows of scores start at multiples of this number; without alignment, the product takes 50 % longer."""


def top_k(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    excluded: Tensor | None = None,
    allowed: Tensor | None = None,
    bonus: ItemBonus | None = None,
    max_scores: int = MAX_RANKED_SCORES,
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each user and their scores, best first, the smaller item first among equal scores.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors; row 0 is padding and is never ranked.
        k: number of items, at least 1; all V items are returned if V is smaller.
        excluded: (N, E) items that a user must not get, padded with 0.
        allowed: (V+1,) bool, items that users may get; None: all.
        bonus: term added to the scores of a few items of each user, before items are excluded.
        max_scores: number of scores computed at once; it affects only the rounding of scores.

    Returns:
        Scores and items, each (N, min(k, V)); where fewer items are left, the score is -inf and the item is 0.

    Raises:
        ValueError: an item that may be ranked has the score NaN; the message names the first such row.

    Example:
        >>> scores, best = top_k(torch.tensor([[1.0]]), torch.tensor([[9.0], [1.0], [2.0], [2.0]]), 2)
        >>> best.tolist()
        [[2, 3]]
    """
    if len(users) * len(items) <= max_scores and len(users) <= _MAX_RANKED_ROWS:
        found = _rank_at_once(users.detach(), items.detach(), k, excluded, allowed, bonus)
        if found is not None:
            return found
    num_rows = min(_MAX_RANKED_ROWS, max_scores)
    blocks = torch.split(users.detach(), num_rows)
    histories = [None] * len(blocks) if excluded is None else torch.split(excluded, num_rows)
    starts = range(0, num_rows * len(blocks), num_rows)
    bonuses = [None if bonus is None else bonus.select(slice(start, start + num_rows)) for start in starts]
    ranked = [
        _rank(block, items.detach(), min(k, len(items) - 1), history, allowed, own_bonus, max_scores)
        for block, history, own_bonus in zip(blocks, histories, bonuses, strict=True)
    ]
    scores, best = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    broken = scores.isnan().any(dim=1)
    if broken.any():
        raise ValueError(f"scores of row {int(broken.nonzero()[0])} hold NaN, expected numbers")
    return scores, best.masked_fill(scores.isneginf(), 0)


def by_columns(items: Tensor) -> Tensor:
    """Return a copy of item vectors in column-major order, which `top_k` reads faster, above all for a single user.

    Args:
        items: (V+1, D).

    Example:
        >>> by_columns(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).stride()
        (1, 2)
    """
    return items.detach().T.clone(memory_format=torch.contiguous_format).T


def _rank_at_once(
    users: Tensor,
    items: Tensor,
    k: int,
    excluded: Tensor | None,
    allowed: Tensor | None,
    bonus: ItemBonus | None,
) -> tuple[Tensor, Tensor] | None:
    """Return scores and items as `top_k` does, in fewer steps; None if scores are equal, NaN, or too few.

    The k + 1 best scores must differ from each other.
    """
    if not len(users) or k + 1 >= len(items) or users.dtype != torch.float32 or items.dtype != torch.float32:
        return None
    scores = users.new_empty(len(users), -(-len(items) // _ALIGNED) * _ALIGNED)[:, : len(items)]
    torch.mm(users, items.T, out=scores)
    if bonus is not None:
        scores.scatter_add_(1, bonus.items, bonus.scores.detach().to(scores.dtype))
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    if excluded is not None:
        is_item = (excluded >= 0) & (excluded < len(items))
        scores.scatter_(1, excluded.where(is_item, 0), -torch.inf)
    scores[:, 0] = -torch.inf
    values, best = scores.topk(k + 1, dim=1)
    if not (values[:, 1:] < values[:, :-1]).all():
        return None
    return values[:, :k], best[:, :k]


def _rank(
    users: Tensor,
    items: Tensor,
    k: int,
    excluded: Tensor | None,
    allowed: Tensor | None,
    bonus: ItemBonus | None,
    max_scores: int,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(users.dtype, items.dtype), torch.float32)
    num_rows, width = len(users), max(1, max_scores // max(1, len(users)))
    users = users.to(dtype)
    buffer = users.new_empty(num_rows, min(width, -(-(len(items) - 1) // _ALIGNED) * _ALIGNED))
    scores = users.new_full((num_rows, k), -torch.inf)
    best = torch.zeros_like(scores, dtype=torch.int64)
    for start in range(1, len(items), width):
        chunk = items[start : start + width].to(dtype)
        own = torch.mm(users, chunk.T, out=buffer[:, : len(chunk)])
        if bonus is not None:
            _add_bonus(own, start, bonus)
        _mask(own, start, excluded, allowed)
        columns = best_columns(own, k)
        scores = torch.cat([scores, own.gather(1, columns)], dim=1)
        # Earlier chunks hold smaller items; as their best come first, a stable sort prefers the smaller of equal items.
        scores, order = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))
        best = torch.cat([best, columns + start], dim=1).gather(1, order)
    return scores, best


def _add_bonus(scores: Tensor, start: int, bonus: ItemBonus) -> None:
    """Add the bonus of the items that begin at `start` to their scores."""
    rows, places = ((bonus.items >= start) & (bonus.items < start + scores.shape[1])).nonzero(as_tuple=True)
    added = bonus.scores.detach()[rows, places].to(scores.dtype)
    scores.index_put_((rows, bonus.items[rows, places] - start), added, accumulate=True)


def _mask(scores: Tensor, start: int, excluded: Tensor | None, allowed: Tensor | None) -> None:
    """Set the scores of items that must not be ranked to -inf, in a chunk that begins at the item `start`."""
    stop = start + scores.shape[1]
    if allowed is not None:
        scores.masked_fill_(~allowed[start:stop], -torch.inf)
    if excluded is not None:
        rows, places = ((excluded >= start) & (excluded < stop)).nonzero(as_tuple=True)
        scores[rows, excluded[rows, places] - start] = -torch.inf


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Return the columns (N, min(k, width)) of the best scores of each row, ascending; the first among equal scores.

    NaN counts as the best score. The choice among several scores of -inf is not defined.

    Args:
        scores: (N, width).
        k: at least 1.

    Example:
        >>> best_columns(torch.tensor([[5.0, 7.0, 5.0, 9.0]]), 3).tolist()
        [[0, 1, 3]]
    """
    num_rows, width = scores.shape
    if width <= k:
        return torch.arange(width, device=scores.device).expand(num_rows, width)
    values, columns = scores.topk(k + 1, dim=1)  # one more shows whether the choice is unique
    tied = (values[:, k - 1] == values[:, k]) & ~values[:, k].isneginf()
    columns = columns[:, :k]
    if tied.any():
        columns[tied] = _first_of_equals(scores[tied], values[tied, k, None], k)
    ascending: Tensor = columns.sort(dim=1).values
    return ascending


def _first_of_equals(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """Return the columns with scores above the least chosen one, and the first columns with that score, k in all."""
    above, level = ~(scores <= least), scores == least
    missing = k - above.sum(dim=1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= missing))
    columns: Tensor = chosen.nonzero()[:, 1].view(len(scores), k)
    return columns
