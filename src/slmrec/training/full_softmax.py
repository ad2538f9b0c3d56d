"""Losses over the whole catalogue in chunks, and item sampling; the B x V matrix of scores is never held."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MAX_CHUNK_SCORES = 2**25
"""Scores (float32) that a loss computes at once, 128 MiB; smaller chunks read and write the item table more often."""

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
