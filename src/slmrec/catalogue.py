"""Users against the whole catalogue, without ever holding all their scores: losses, sampling and the best items."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MAX_CHUNK_SCORES = 2**25
"""Scores (float32) that a loss computes at once, 128 MiB; smaller chunks read and write the item table more often."""
MAX_RANKED_SCORES = 2**23
"""Scores (float32) that `top_k` computes at once, 32 MiB."""
_MAX_RANKED_ROWS = 256  # Few rows make wide chunks, and so few merges of each row.
_ALIGNED = 64
"""Rows of scores begin at multiples of this: products into rows of an odd length take half as long again."""

_ChunkLoss = Callable[[slice, Tensor, Tensor], Tensor]
"""From a chunk's rows, its scores (free to overwrite) and their log-softmax to the summed loss.

In place of the log-softmax it leaves the gradient of the scores.
"""


def catalogue_cross_entropy(
    users: Tensor, items: Tensor, targets: Tensor, include_padding: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the targets over the whole catalogue.

    Under autocast the products are in its precision, everything else in float32. Differentiable once.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors, row 0 padding.
        targets: (N,) items 1..V.
        include_padding: let the padding item compete, as the reference does.
        label_smoothing: this share of each label is spread evenly over all that compete (Szegedy et al. 2016).

    Example:
        >>> catalogue_cross_entropy(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).exp().item()
        3.0

    Source: SLMRec, the recommendation loss.
    """
    first = 0 if include_padding else 1
    return _chunked(
        users, items, first, _cross_entropy_of(targets - first, label_smoothing), _products_dtype(users, items)
    )


def catalogue_divergence(
    users: Tensor, items: Tensor, teacher_users: Tensor, teacher_items: Tensor, temperature: float
) -> Tensor:
    """KL(teacher || student) between softened scores of the items 1..V, mean over rows, times temperature squared.

    The teacher gets no gradient. Precision as in `catalogue_cross_entropy`.

    Args:
        users: (N, D) user vectors of the student.
        items: (V+1, D) item vectors of the student.
        teacher_users: (N, D') user vectors of the teacher.
        teacher_items: (V+1, D') item vectors of the teacher.
        temperature: divides both sides' scores.

    Example:
        >>> items = torch.eye(3)
        >>> catalogue_divergence(items[1:], items, items[1:], items, 2.0).item()
        0.0

    Source: Hinton et al. 2015; the logit variant that SLMRec's code offers for online distillation.
    """
    dtype = _products_dtype(users, items)
    teacher = (teacher_users.detach() / temperature).to(dtype), teacher_items.detach()[1:].to(dtype)
    return _chunked(users / temperature, items, 1, _divergence_from(*teacher), dtype) * temperature**2


def sampled_cross_entropy(
    users: Tensor, items: Tensor, targets: Tensor, sampled: Tensor, log_q: Tensor | None
) -> Tensor:
    """Mean cross-entropy of the targets over themselves and K shared items drawn with replacement.

    A draw's score is lowered by the log of its expected count, K q, so that the draws stand for the whole catalogue.
    The target is always there: its expected count is 1 and its score stays. A draw that equals a row's target is left
    out of that row.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors, row 0 padding.
        targets: (N,) items 1..V.
        sampled: (K,) items 1..V.
        log_q: (V+1,) log-probability of each item in one draw; None leaves all scores as they are.

    Source: Bengio & Senécal 2008 (importance sampling); Yi et al. 2019, who correct the target as well, which fits
    targets that were drawn; Khrylchenko et al. 2025 show that one that is always there must not be.
    """
    drawn = sampled.to(targets.device)
    vectors = F.embedding(torch.cat([targets, drawn]), items)
    own, others = torch.split(vectors, [len(targets), len(drawn)])
    scores = users @ others.T
    if log_q is not None:
        expected = log_q[sampled.to(log_q.device)] + math.log(len(sampled))
        scores = scores - expected.to(scores.device)
    scores = scores.masked_fill(drawn == targets[:, None], -torch.inf)
    scores = torch.cat([(users * own).sum(dim=1, keepdim=True), scores], dim=1)
    return F.cross_entropy(scores, torch.zeros_like(targets))


class ItemSampler:
    """Draws items 1..V with probabilities proportional to (count + 1) ** exponent.

    Args:
        counts: (V+1,) how often each item occurs; row 0 is ignored.
        exponent: 1 draws by popularity, 0 uniformly.
    """

    log_q: Tensor
    """(V+1,) float32 log-probability of each item in one draw; -inf for the padding item."""

    def __init__(self, counts: Tensor, exponent: float) -> None:
        weights = (counts[1:].cpu().double() + 1) ** exponent
        self._cumulative = weights.cumsum(0)  # torch.multinomial ends at 2**24 items
        self.log_q = F.pad((weights / self._cumulative[-1]).log().float(), (1, 0), value=-torch.inf)

    def draw(self, num: int) -> Tensor:
        """(num,) items, with replacement, on the CPU; seeded by `torch.manual_seed`."""
        points = torch.rand(num, dtype=torch.float64) * self._cumulative[-1]
        items = torch.searchsorted(self._cumulative, points, right=True) + 1
        return items.clamp_(max=len(self._cumulative))  # a point can be rounded up to the very end


def top_k(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    excluded: Tensor | None = None,
    allowed: Tensor | None = None,
    max_scores: int = MAX_RANKED_SCORES,
) -> tuple[Tensor, Tensor]:
    """The k best items of each user and their scores, best first, the smaller item first among equal scores.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors; row 0 is padding and never ranks.
        k: at least 1; the V best are returned where V is smaller.
        excluded: (N, E) items that a user must not get, padded with 0.
        allowed: (V+1,) bool, the items that anyone may get.
        max_scores: computed at once; the result does not depend on it, but for the rounding of scores.

    Returns:
        Scores and items, each (N, min(k, V)). Where fewer items are left, the score is -inf and the item 0.

    Raises:
        ValueError: an item that may rank has the score NaN; the message names the first such row.

    Example:
        >>> scores, best = top_k(torch.tensor([[1.0]]), torch.tensor([[9.0], [1.0], [2.0], [2.0]]), 2)
        >>> best.tolist()
        [[2, 3]]
    """
    if len(users) * len(items) <= max_scores and len(users) <= _MAX_RANKED_ROWS:
        found = _rank_at_once(users.detach(), items.detach(), k, excluded, allowed)
        if found is not None:
            return found
    num_rows = min(_MAX_RANKED_ROWS, max_scores)
    blocks = torch.split(users.detach(), num_rows)
    histories = [None] * len(blocks) if excluded is None else torch.split(excluded, num_rows)
    ranked = [
        _rank(block, items.detach(), min(k, len(items) - 1), history, allowed, max_scores)
        for block, history in zip(blocks, histories, strict=True)
    ]
    scores, best = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    broken = scores.isnan().any(dim=1)
    if broken.any():
        raise ValueError(f"scores of row {int(broken.nonzero()[0])} hold NaN, expected numbers")
    return scores, best.masked_fill(scores.isneginf(), 0)


def by_columns(items: Tensor) -> Tensor:
    """A copy of item vectors, each coordinate of all items in one place: `top_k` reads it faster, for one user most.

    Args:
        items: (V+1, D).

    Example:
        >>> by_columns(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).stride()
        (1, 2)
    """
    return items.detach().T.clone(memory_format=torch.contiguous_format).T


def _products_dtype(users: Tensor, items: Tensor) -> torch.dtype:
    device = users.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(users.dtype, items.dtype)


def _chunked(users: Tensor, items: Tensor, first: int, chunk_loss: _ChunkLoss, dtype: torch.dtype) -> Tensor:
    if not torch.is_grad_enabled():  # the function sees what its inputs require, not whether anyone will ask for it
        users, items = users.detach(), items.detach()
    loss: Tensor = _ChunkedLoss.apply(users, items, first, chunk_loss, dtype)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Mean loss over rows, whose gradients are ready when the loss is: no score is kept or computed twice."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, first: int, chunk_loss: _ChunkLoss, dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        grads = [
            torch.zeros_like(value, dtype=exact) if needed else None
            for value, needed in zip((users, items), ctx.needs_input_grad, strict=False)
        ]
        with torch.autocast(users.device.type, enabled=False):
            total = _walk(users.to(dtype), items[first:].to(dtype), chunk_loss, grads[0], _from(grads[1], first))
        ctx.num_rows = len(users)
        ctx.save_for_backward(*grads)
        return total / len(users)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.num_rows
        users, items = (None if value is None else value * scale for value in ctx.saved_tensors)
        return users, items, None, None, None


def _from(grad: Tensor | None, first: int) -> Tensor | None:
    return None if grad is None else grad[first:]


def _walk(
    users: Tensor, items: Tensor, chunk_loss: _ChunkLoss, grad_users: Tensor | None, grad_items: Tensor | None
) -> Tensor:
    """The summed loss; adds the gradients of the sum to those that are given."""
    exact = torch.promote_types(users.dtype, torch.float32)
    num_rows = _rows_at_once(users, items)
    scores, log_q = (users.new_empty(num_rows, len(items), dtype=dtype) for dtype in (users.dtype, exact))
    total = users.new_zeros((), dtype=exact)
    for start in range(0, len(users), num_rows):
        rows = slice(start, start + num_rows)
        chunk = users[rows]
        own_scores, own_log_q = scores[: len(chunk)], log_q[: len(chunk)]
        _log_softmax(chunk, items, own_scores, own_log_q)
        total += chunk_loss(rows, own_scores, own_log_q)
        grad_scores = own_log_q.to(users.dtype)
        if grad_users is not None:
            _add_product(grad_users[rows], grad_scores, items)
        if grad_items is not None:
            _add_product(grad_items, grad_scores.T, chunk)
    return total


def _rows_at_once(users: Tensor, items: Tensor) -> int:
    return min(len(users), max(1, MAX_CHUNK_SCORES // len(items)))


def _log_softmax(users: Tensor, items: Tensor, scores: Tensor, out: Tensor) -> None:
    torch.mm(users, items.T, out=scores)
    torch.log_softmax(scores, dim=1, dtype=out.dtype, out=out)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right


def _cross_entropy_of(columns: Tensor, smoothing: float) -> _ChunkLoss:
    def evaluate(rows: slice, _: Tensor, log_q: Tensor) -> Tensor:
        places = columns[rows, None]
        own = log_q.gather(1, places)
        total = -own.sum() if not smoothing else -(1 - smoothing) * own.sum() - smoothing * log_q.mean(dim=1).sum()
        log_q.exp_().scatter_(1, places, own.expm1() + smoothing)
        if smoothing:
            log_q.sub_(smoothing / log_q.shape[1])
        return total

    return evaluate


def _divergence_from(users: Tensor, items: Tensor) -> _ChunkLoss:
    exact = torch.promote_types(users.dtype, torch.float32)
    all_log_p, all_p = users.new_empty(2, _rows_at_once(users, items), len(items), dtype=exact)

    def evaluate(rows: slice, scores: Tensor, log_q: Tensor) -> Tensor:
        log_p, p = all_log_p[: len(log_q)], all_p[: len(log_q)]
        _log_softmax(users[rows], items, scores, log_p)
        torch.exp(log_p, out=p)
        loss: Tensor = log_p.sub_(log_q).mul_(p).sum()
        log_q.exp_().sub_(p)
        return loss

    return evaluate


def _rank_at_once(
    users: Tensor, items: Tensor, k: int, excluded: Tensor | None, allowed: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Scores and items as `top_k` gives them, in few steps; None where scores are equal, NaN, or too few.

    Of the k + 1 best scores each must be less than the one before.
    """
    if not len(users) or k + 1 >= len(items) or users.dtype != torch.float32 or items.dtype != torch.float32:
        return None
    scores = users.new_empty(len(users), -(-len(items) // _ALIGNED) * _ALIGNED)[:, : len(items)]
    torch.mm(users, items.T, out=scores)
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
    users: Tensor, items: Tensor, k: int, excluded: Tensor | None, allowed: Tensor | None, max_scores: int
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
        _mask(own, start, excluded, allowed)
        columns = best_columns(own, k)
        scores = torch.cat([scores, own.gather(1, columns)], dim=1)
        # What was best so far has smaller items and stands first: a stable sort keeps it there among equals.
        scores, order = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))
        best = torch.cat([best, columns + start], dim=1).gather(1, order)
    return scores, best


def _mask(scores: Tensor, start: int, excluded: Tensor | None, allowed: Tensor | None) -> None:
    """Sets to -inf what may not rank among the items that begin at `start`."""
    stop = start + scores.shape[1]
    if allowed is not None:
        scores.masked_fill_(~allowed[start:stop], -torch.inf)
    if excluded is not None:
        rows, places = ((excluded >= start) & (excluded < stop)).nonzero(as_tuple=True)
        scores[rows, excluded[rows, places] - start] = -torch.inf


def best_columns(scores: Tensor, k: int) -> Tensor:
    """(N, min(k, width)) columns of each row's best scores, ascending; of equal scores the first columns are chosen.

    NaN counts as the best of all. Which of several -inf are chosen is not said.

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
    """Columns above the least chosen score, and as many of the first ones at it as make k."""
    above, level = ~(scores <= least), scores == least
    missing = k - above.sum(dim=1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= missing))
    columns: Tensor = chosen.nonzero()[:, 1].view(len(scores), k)
    return columns
