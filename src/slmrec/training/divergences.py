"""Divergences of the student from the teacher: of hidden states; of scores over the catalogue, its top-k, or in groups.

As in `full_softmax`, the scores are computed in chunks of rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slmrec.data.dataset import Ints
from slmrec.training.full_softmax import (
    ChunkLoss,
    bonus_columns,
    chunked_loss,
    matmul_dtype,
    rows_per_chunk,
    write_log_softmax,
)
from slmrec.types import ItemBonus

Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of the log-softmax (n, V) of student and teacher, and a buffer of this shape, that returns the divergence.

It returns the sum over the rows, and replaces the student's log-softmax by the gradient of that sum with respect to the
student's scores. It may overwrite the other two.
"""


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 - cosine similarity between hidden states (N, H).

    Example:
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        1.0

    Source: SLMRec, the feature similarity term (cosine).
    """
    return (1 - F.cosine_similarity(_upcast(student), _upcast(teacher), dim=-1)).mean()


def norm_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Euclidean (L2) distance between hidden states (N, H).

    Example:
        >>> norm_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item()
        5.0

    Source: SLMRec, the feature norm term.
    """
    distances: Tensor = torch.linalg.vector_norm(_upcast(student) - _upcast(teacher), dim=-1)
    return distances.mean()


def _upcast(states: Tensor) -> Tensor:
    """Return the states in float32 or better; bfloat16 is too coarse for sums of squares and differences."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def whole_catalogue(log_q: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
    """Compare the scores of all items; a `Compare`."""
    torch.exp(log_p, out=p)
    loss: Tensor = log_p.sub_(log_q).mul_(p).sum()
    log_q.exp_().sub_(p)
    return loss


def top_k_and_rest(k: int) -> Compare:
    """Compare the scores of the teacher's k best items, and of all other items together as one class.

    The student learns the order of the k items and the share of the rest, but not how the teacher ranks the rest.
    Without the class of the rest, nothing would keep the scores of other items down.

    Source: the "ghost token" of Anshumann et al., Sparse Logit Sampling (ACL 2025), who show that top-k distributions
    which are renormalised without it are biased.

    Args:
        k: Number of items, less than V.
    """

    def compare(log_q: Tensor, log_p: Tensor, _: Tensor) -> Tensor:
        top_log_p, columns = log_p.topk(k)
        top_log_q, top_p = log_q.gather(1, columns), top_log_p.exp()
        rest_log_p = log_p.scatter_(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)
        log_ratio = rest_log_p - log_q.scatter_(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)
        loss: Tensor = (top_p * (top_log_p - top_log_q)).sum() + (rest_log_p.exp() * log_ratio).sum()
        log_q.copy_(log_q.exp() - (log_q + log_ratio).exp())
        log_q.scatter_(1, columns, top_log_q.exp() - top_p)
        return loss

    return compare


def within_groups(groups: Sequence[Tensor]) -> Compare:
    """Compare the scores of items within each group, whatever the shares of the groups; the mean over the groups.

    Args:
        groups: Columns of each group, which are items - 1; every item belongs to one group.
    """

    def compare(log_q: Tensor, log_p: Tensor, _: Tensor) -> Tensor:
        total = log_q.new_zeros(())
        for columns in groups:
            own_log_q, own_log_p = log_q[:, columns].log_softmax(dim=1), log_p[:, columns].log_softmax(dim=1)
            own_p = own_log_p.exp()
            total += own_log_p.sub_(own_log_q).mul_(own_p).sum()
            log_q[:, columns] = own_log_q.exp_().sub_(own_p).div_(len(groups))
        return total / len(groups)

    return compare


def popularity_groups(item_counts: Ints, num_groups: int) -> list[Tensor]:
    """Return the columns (items - 1) of groups of similar popularity, the most popular items first.

    Each group has about the same number of training events; so few items, each with many events, make the first group,
    and the last one holds all items without events. Groups without items are left out.

    Args:
        item_counts: (V+1,) number of training events of each item; entry 0 is ignored.
        num_groups: Maximum number of groups.

    Example:
        >>> [group.tolist() for group in popularity_groups(np.array([0, 1, 4, 1, 2, 0]), 2)]
        [[1], [0, 2, 3, 4]]

    Source: Chen et al., Unbiased Knowledge Distillation for Recommendation (WSDM 2023; UnKD).
    """
    counts = item_counts[1:]
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    numbers = np.minimum(before * num_groups // max(1, counts.sum()), num_groups - 1)
    return [torch.from_numpy(np.sort(order[numbers == number])) for number in np.unique(numbers)]


def catalogue_divergence(
    users: Tensor,
    items: Tensor,
    teacher_users: Tensor,
    teacher_items: Tensor,
    temperature: float,
    *,
    bonus: ItemBonus | None = None,
    teacher_bonus: ItemBonus | None = None,
    compare: Compare = whole_catalogue,
) -> Tensor:
    """Return KL(teacher || student) of the softened scores of items 1..V, times the temperature squared.

    The result is the mean over the N rows. The teacher receives no gradient. The precision is that of
    `catalogue_cross_entropy`.

    Args:
        users: (N, D) user vectors of the student.
        items: (V+1, D) item vectors of the student.
        teacher_users: (N, D') user vectors of the teacher.
        teacher_items: (V+1, D') item vectors of the teacher.
        temperature: Temperature that divides the scores of both models.
        bonus: Term that is added to the student's scores of a few items of each row.
        teacher_bonus: The same for the teacher.
        compare: What is compared: all items, `top_k_and_rest` or `within_groups`.

    Example:
        >>> items = torch.eye(3)
        >>> catalogue_divergence(items[1:], items, items[1:], items, 2.0).item()
        0.0

    Source: Hinton et al. 2015; the logit variant that the code of SLMRec offers for online distillation.
    """
    dtype = matmul_dtype(users, items)
    teacher = (teacher_users.detach() / temperature).to(dtype), teacher_items.detach()[1:].to(dtype)
    terms = [one and one._replace(scores=one.scores / temperature) for one in (bonus, teacher_bonus)]
    chunk_loss = _divergence_chunks(*teacher, bonus_columns(terms[1], 1), compare)
    return chunked_loss(users / temperature, items, 1, chunk_loss, dtype, terms[0]) * temperature**2


def _divergence_chunks(users: Tensor, items: Tensor, bonus: ItemBonus | None, compare: Compare) -> ChunkLoss:
    accumulate_dtype = torch.promote_types(users.dtype, torch.float32)
    all_log_p, buffer = users.new_empty(2, rows_per_chunk(users, items), len(items), dtype=accumulate_dtype)

    def evaluate(rows: slice, scores: Tensor, log_q: Tensor) -> Tensor:
        log_p = all_log_p[: len(log_q)]
        write_log_softmax(users[rows], items, None if bonus is None else bonus.select(rows), scores, log_p)
        return compare(log_q, log_p, buffer[: len(log_q)])

    return evaluate
