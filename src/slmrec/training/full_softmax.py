"""Losses over the whole catalogue and over sampled items.

The scores are computed in chunks of rows, so the (N, V) matrix of scores is never held in memory.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from slmrec.config import TrainConfig
from slmrec.data.dataset import Ints
from slmrec.training.item_sampler import ItemSampler
from slmrec.types import ItemBonus

MAX_CHUNK_SCORES = 2**25
"""Number of scores (float32) in a chunk, 128 MiB; smaller chunks read and write the item table more often."""
SAMPLING_EXPONENT = 0.75
"""Exponent of item counts in the sampling distribution: 0 is uniform, 1 is by popularity."""

ChunkLoss = Callable[[slice, Tensor, Tensor], Tensor]
"""Function of a chunk's rows, scores and log-softmax that returns the summed loss of the chunk.

It may overwrite the scores, and replaces the log-softmax by the gradient of the loss with respect to the scores.
"""


class CatalogueLoss:
    """Mean cross-entropy of the targets over the whole catalogue, or over sampled items.

    Args:
        settings: Training settings: `num_sampled` chooses sampling, `label_smoothing_factor` smooths the labels of the
            whole catalogue, `unseen_items` leaves items without events out. None: the defaults.
        item_counts: (V+1,) number of training events of each item; required with `num_sampled`, whose distribution is
            made from them, and with `unseen_items: left_out`.
        include_padding: Let the padding item compete with the items, as the reference implementation does.

    Raises:
        ValueError: Sampling lacks item counts, or is combined with `include_padding`; or items are to be left out
            without counts.

    Example:
        >>> loss = CatalogueLoss()
        >>> loss(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).exp().item()
        3.0
    """

    def __init__(
        self, settings: TrainConfig | None = None, item_counts: Ints | None = None, include_padding: bool = False
    ) -> None:
        settings = settings or TrainConfig()
        self.num_sampled, self.label_smoothing = settings.num_sampled, settings.label_smoothing_factor
        self.include_padding = include_padding
        self.sampler: ItemSampler | None = None
        self.kept: Tensor | None = None
        if settings.unseen_items == "left_out":
            if item_counts is None:
                raise ValueError(
                    "unseen_items is left_out, but there are no item counts that tell which items those are"
                )
            self.kept = torch.from_numpy(np.append(0, np.flatnonzero(item_counts[1:]) + 1))
            self._places = torch.zeros(len(item_counts), dtype=torch.int64)
            self._places[self.kept] = torch.arange(len(self.kept))
        if self.num_sampled is not None:
            if item_counts is None:
                raise ValueError(f"num_sampled is {self.num_sampled}, but there are no item counts to sample by")
            if include_padding:
                raise ValueError("include_padding is true, but the padding item is never sampled; give one of the two")
            self.sampler = ItemSampler(item_counts, SAMPLING_EXPONENT)

    def begin_step(self, seed: int) -> None:
        """Seed the items that are sampled until the next step: the same ones for all its parts and processes."""
        if self.sampler is not None:
            self.sampler.seed = seed

    def __call__(self, users: Tensor, items: Tensor, targets: Tensor, bonus: ItemBonus | None = None) -> Tensor:
        """Return the loss of user vectors (N, D) with respect to item vectors (V+1, D) and targets (N,).

        Raises:
            ValueError: A bonus is given, and items are sampled.
        """
        if self.kept is not None:
            items, places = items[self.kept.to(items.device)], self._places.to(items.device)
            targets = places[targets]
            bonus = None if bonus is None else bonus._replace(items=places[bonus.items])
        if self.sampler is None or self.num_sampled is None:
            return catalogue_cross_entropy(users, items, targets, self.include_padding, self.label_smoothing, bonus)
        if bonus is not None:
            raise ValueError("scores of single items are not supported with sampled items; use the whole catalogue")
        sampled = self.sampler.draw(self.num_sampled)
        return sampled_cross_entropy(users, items, targets, sampled, self.sampler.log_q)


def catalogue_cross_entropy(
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    include_padding: bool = False,
    label_smoothing: float = 0.0,
    bonus: ItemBonus | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the targets over the whole catalogue.

    Under autocast the matrix products are computed in its precision and everything else in float32. The result can be
    differentiated once.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors; row 0 is padding.
        targets: (N,) items 1..V.
        include_padding: Let the padding item compete, as the reference implementation does.
        label_smoothing: Share of each label that is spread evenly over all competing items (Szegedy et al. 2016).
        bonus: Term that is added to the scores of a few items of each row; None: no such term.

    Example:
        >>> catalogue_cross_entropy(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).exp().item()
        3.0

    Source: SLMRec, the recommendation loss.
    """
    first = 0 if include_padding else 1
    chunk_loss = _cross_entropy_chunks(targets - first, label_smoothing)
    return chunked_loss(users, items, first, chunk_loss, matmul_dtype(users, items), bonus)


def sampled_cross_entropy(
    users: Tensor, items: Tensor, targets: Tensor, sampled: Tensor, log_q: Tensor | None
) -> Tensor:
    """Return the mean cross-entropy of each target against K shared items sampled with replacement.

    The score of a sampled item is lowered by the logarithm of its expected count, K q, so that the sample represents
    the whole catalogue. The score of the target is not corrected, because the target is always present. A sampled item
    that equals the target of a row is left out of that row.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors; row 0 is padding.
        targets: (N,) items 1..V.
        sampled: (K,) items 1..V.
        log_q: (V+1,) log-probability of each item in one draw; None applies no correction.

    Source: Bengio & Senécal 2008 (importance sampling); Yi et al. 2019, who also correct the target, which is right
    for targets that are sampled; Khrylchenko et al. 2025 show that a target that is always present must not be
    corrected.

    Example:
        >>> users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = sampled_cross_entropy(users, items, torch.tensor([1]), torch.tensor([2]), None)
        >>> round(loss.item(), 4)  # log(1 + exp(0 - 1))
        0.3133
    """
    negatives = sampled.to(targets.device)
    vectors = F.embedding(torch.cat([targets, negatives]), items)
    target_vectors, negative_vectors = torch.split(vectors, [len(targets), len(negatives)])
    scores = users @ negative_vectors.T
    if log_q is not None:
        expected = log_q[sampled.to(log_q.device)] + math.log(len(sampled))
        scores = scores - expected.to(scores.device)
    scores = scores.masked_fill(negatives == targets[:, None], -torch.inf)
    scores = torch.cat([(users * target_vectors).sum(dim=1, keepdim=True), scores], dim=1)
    return F.cross_entropy(scores, torch.zeros_like(targets))


def matmul_dtype(users: Tensor, items: Tensor) -> torch.dtype:
    """Return the precision of matrix products: that of autocast, or of the vectors."""
    device = users.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(users.dtype, items.dtype)


def bonus_columns(bonus: ItemBonus | None, first: int) -> ItemBonus | None:
    """Return a bonus by columns of the scores, which begin at item `first`; padding has score 0 in column 0."""
    if bonus is None:
        return None
    is_item = bonus.items > 0
    return ItemBonus((bonus.items - first).where(is_item, 0), bonus.scores.where(is_item, 0.0))


def chunked_loss(
    users: Tensor,
    items: Tensor,
    first: int,
    chunk_loss: ChunkLoss,
    dtype: torch.dtype,
    bonus: ItemBonus | None = None,
) -> Tensor:
    """Return the mean of a loss over the rows, whose scores are computed in chunks.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors.
        first: First item that competes: 0 with padding, else 1; column c of the scores is item `first` + c.
        chunk_loss: Loss of a chunk.
        dtype: Precision of the matrix products.
        bonus: Term that is added to the scores of a few items of each row.
    """
    columns, added = bonus_columns(bonus, first) or (None, None)
    if not torch.is_grad_enabled():  # a custom function does not see the gradient mode
        users, items, added = users.detach(), items.detach(), None if added is None else added.detach()
    loss: Tensor = _ChunkedLoss.apply(users, items, added, columns, first, chunk_loss, dtype)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Mean loss over rows that computes its gradients in the forward pass: no score is stored or computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        added: Tensor | None,
        columns: Tensor | None,
        first: int,
        chunk_loss: ChunkLoss,
        dtype: torch.dtype,
    ) -> Tensor:
        accumulate_dtype = torch.promote_types(dtype, torch.float32)
        grads = [
            torch.zeros_like(value, dtype=accumulate_dtype) if needed and value is not None else None
            for value, needed in zip((users, items, added), ctx.needs_input_grad, strict=False)
        ]
        bonus = None if added is None or columns is None else ItemBonus(columns, added.to(dtype))
        with torch.autocast(users.device.type, enabled=False):
            own = users.to(dtype), items[first:].to(dtype), bonus
            total = _sum_chunks(*own, chunk_loss, grads[0], _from(grads[1], first), grads[2])
        ctx.num_rows = len(users)
        ctx.save_for_backward(*grads)
        return total / len(users)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.num_rows
        users, items, added = (None if value is None else value * scale for value in ctx.saved_tensors)
        return users, items, added, None, None, None, None


def _from(grad: Tensor | None, first: int) -> Tensor | None:
    return None if grad is None else grad[first:]


def _sum_chunks(
    users: Tensor,
    items: Tensor,
    bonus: ItemBonus | None,
    chunk_loss: ChunkLoss,
    grad_users: Tensor | None,
    grad_items: Tensor | None,
    grad_added: Tensor | None,
) -> Tensor:
    """Return the summed loss, and add its gradients to the given tensors."""
    accumulate_dtype = torch.promote_types(users.dtype, torch.float32)
    num_rows = rows_per_chunk(users, items)
    scores, log_q = (users.new_empty(num_rows, len(items), dtype=dtype) for dtype in (users.dtype, accumulate_dtype))
    total = users.new_zeros((), dtype=accumulate_dtype)
    for start in range(0, len(users), num_rows):
        rows = slice(start, start + num_rows)
        chunk = users[rows]
        chunk_scores, chunk_log_q = scores[: len(chunk)], log_q[: len(chunk)]
        own = None if bonus is None else bonus.select(rows)
        write_log_softmax(chunk, items, own, chunk_scores, chunk_log_q)
        total += chunk_loss(rows, chunk_scores, chunk_log_q)
        grad_scores = chunk_log_q.to(users.dtype)
        if grad_users is not None:
            _add_product(grad_users[rows], grad_scores, items)
        if grad_items is not None:
            _add_product(grad_items, grad_scores.T, chunk)
        if grad_added is not None and own is not None:
            grad_added[rows] = chunk_log_q.gather(1, own.items)
    return total


def rows_per_chunk(users: Tensor, items: Tensor) -> int:
    """Return the number of rows whose scores are held at once."""
    return min(len(users), max(1, MAX_CHUNK_SCORES // len(items)))


def write_log_softmax(users: Tensor, items: Tensor, bonus: ItemBonus | None, scores: Tensor, out: Tensor) -> None:
    """Write the scores of a chunk, and their log-softmax to `out`; the bonus is by columns."""
    torch.mm(users, items.T, out=scores)
    if bonus is not None:
        scores.scatter_add_(1, bonus.items, bonus.scores.to(scores.dtype))
    torch.log_softmax(scores, dim=1, dtype=out.dtype, out=out)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right


def _cross_entropy_chunks(columns: Tensor, smoothing: float) -> ChunkLoss:
    def evaluate(rows: slice, _: Tensor, log_q: Tensor) -> Tensor:
        chunk_columns = columns[rows, None]
        target_log_q = log_q.gather(1, chunk_columns)
        total = -target_log_q.sum()
        if smoothing:
            total = -(1 - smoothing) * target_log_q.sum() - smoothing * log_q.mean(dim=1).sum()
        log_q.exp_().scatter_(1, chunk_columns, target_log_q.expm1() + smoothing)
        if smoothing:
            log_q.sub_(smoothing / log_q.shape[1])
        return total

    return evaluate
