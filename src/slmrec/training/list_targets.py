"""Items that a teacher outside lists, as weighted targets of the newest training position of their users.

Source: Cui et al., Distillation Matters: Empowering Sequential Recommenders to Match the Performance of Large Language
Models (RecSys 2024; DLLM2Rec), importance-aware ranking distillation.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slmrec.config.distill import ListWeights
from slmrec.data.batching import pad_items
from slmrec.data.dataset import Ints
from slmrec.data.teacher_lists import TeacherLists
from slmrec.errors import DataError
from slmrec.training.full_softmax import ChunkLoss, chunked_loss, matmul_dtype
from slmrec.training.samples import TrainingSamples
from slmrec.types import Batch, ItemBonus


class ListBatch(NamedTuple):
    """Lists of the M users of a batch who have one, at most E items long."""

    positions: Tensor
    """(M,) supervised positions that the lists belong to."""
    items: Tensor
    """(M, E) items 1..V, best first, padded with 0."""
    weights: Tensor
    """(M, E) weights by place and confidence; 0 for padding."""


class ListTargets:
    """Lists by sample: those of each user belong to the sample that ends with the user's newest training target.

    Args:
        lists: The lists.
        data: Training samples.
        settings: Weights of the items of a list.

    Raises:
        DataError: No user with a list has a training sample, or no weight is left.
    """

    def __init__(self, lists: TeacherLists, data: TrainingSamples, settings: ListWeights) -> None:
        self.lists, self.settings = lists, settings
        self.weights = _fixed_weights(lists, settings)
        self.user_of_sample = _newest_samples(data, len(lists.offsets) - 1)
        has_list = np.diff(lists.offsets) > 0
        users = self.user_of_sample[self.user_of_sample >= 0]
        self.num_users = int(has_list[users].sum())
        """Number of users whose list is a target."""
        if not self.num_users:
            raise DataError(
                f"distill.lists: none of the {lists.num_users} users with a list has a training sample, which takes a "
                "longer history; give lists of other users"
            )

    def of_batch(self, batch: Batch) -> ListBatch | None:
        """Return the lists of a batch on its device; None if no user has one at a position of the batch.

        Raises:
            ValueError: The batch has no sample numbers.
        """
        if batch.rows is None:
            raise ValueError("the batch has no sample numbers (rows), by which lists are found; use collate")
        samples, lengths = batch.rows.cpu().numpy(), batch.histories.lengths.cpu().numpy()
        users = np.where(samples >= 0, self.user_of_sample[samples], -1)
        starts, ends = self.lists.offsets[users], self.lists.offsets[users + 1]
        rows = np.flatnonzero((users >= 0) & (ends > starts))
        if not len(rows):
            return None
        positions = (np.cumsum(lengths) - 1)[rows] if batch.every_position else rows
        spans = [slice(start, end) for start, end in zip(starts[rows], ends[rows], strict=True)]
        items = pad_items([self.lists.items[span].tolist() for span in spans])
        weights = torch.zeros(items.shape)
        weights[items > 0] = torch.from_numpy(np.concatenate([self.weights[span] for span in spans]))
        device = batch.targets.device
        return ListBatch(torch.from_numpy(positions).to(device), items.to(device), weights.to(device))


def list_cross_entropy(
    users: Tensor, items: Tensor, listed: ListBatch, agreement: float, bonus: ItemBonus | None = None
) -> Tensor:
    """Return the mean cross-entropy of listed items, whose weights are normalised to a sum of 1 for each list.

    Args:
        users: (M, D) user vectors of the positions that have a list.
        items: (V+1, D) item vectors; row 0 is padding.
        listed: The lists.
        agreement: Weight that is added to an item which is among as many best items of the student as the list is long.
        bonus: Term that is added to the scores of a few items of each row.

    Example:
        >>> listed = ListBatch(torch.tensor([0]), torch.tensor([[3, 1]]), torch.tensor([[3.0, 1.0]]))
        >>> list_cross_entropy(torch.zeros(1, 2), torch.zeros(5, 2), listed, 0.0).exp().item()
        4.0
    """
    chunk_loss = _list_chunks(listed, agreement)
    return chunked_loss(users, items, 1, chunk_loss, matmul_dtype(users, items), bonus)


def _list_chunks(listed: ListBatch, agreement: float) -> ChunkLoss:
    is_item = listed.items > 0
    columns, lasts = (listed.items - 1).clamp(min=0), is_item.sum(dim=1, keepdim=True) - 1

    def evaluate(rows: slice, _: Tensor, log_q: Tensor) -> Tensor:
        own = log_q.gather(1, columns[rows])
        least = log_q.topk(own.shape[1]).values.gather(1, lasts[rows])
        weights = listed.weights[rows] + agreement * ((own >= least) & is_item[rows])
        weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)).to(log_q.dtype)
        total = -(weights * own).sum()
        log_q.exp_().mul_(weights.sum(dim=1, keepdim=True)).scatter_add_(1, columns[rows], -weights)
        return total

    return evaluate


def _fixed_weights(lists: TeacherLists, settings: ListWeights) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Return the weights by place and confidence; each kind has the sum of its setting in every list."""
    users = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    weights = settings.position * _shares(np.exp((1.0 - lists.places) / settings.temperature), users)
    if lists.confidences is not None:
        weights += settings.confidence * _shares(lists.confidences.astype(np.float64), users)
    if not (weights.any() or settings.agreement):
        raise DataError(
            "distill.lists: no item has a weight: distill.list_weights.position and agreement are 0, and the file has "
            "no confidence above 0; give one of them"
        )
    return weights.astype(np.float32)


def _shares(
    values: "np.ndarray[tuple[int], np.dtype[np.float64]]", users: Ints
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    sums = np.bincount(users, values)[users]
    return np.divide(values, sums, out=np.zeros_like(values), where=sums > 0)


def _newest_samples(data: TrainingSamples, num_users: int) -> Ints:
    """Return (samples,) the user of each sample that ends with the user's newest training target; -1 for others."""
    newest = np.full(num_users, -1)
    for rows in data.samples.chunks():
        _, ends, users = data.samples.spans(rows)
        np.maximum.at(newest, users, ends)
    found = np.full(len(data), -1)
    for rows in data.samples.chunks():
        _, ends, users = data.samples.spans(rows)
        found[rows] = np.where(ends == newest[users], users, -1)
    return found
