"""Scorers that learn nothing but counts: what a model has to beat. Both count the train split only."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.data.dataset import Dataset, Ints
from slmrec.types import Batch, Encoded


class Popularity:
    """Scores an item by how often it occurs in the train split; the history does not matter."""

    max_history_items = 1

    def __init__(self, train_counts: Ints) -> None:
        """Takes the counts (V+1,) of `Dataset.train_counts`."""
        self._scores = torch.from_numpy(train_counts.astype(np.float32))
        self._scores[0] = -torch.inf

    @property
    def num_items(self) -> int:
        """V."""
        return len(self._scores) - 1

    def read(self, batch: Batch) -> Encoded:
        """Return the lengths (B,), which `score` only counts."""
        return Encoded(batch.histories.lengths)

    def score(self, encoded: Encoded) -> Tensor:
        """(b, V+1), the same for every user; column 0 is -inf."""
        return self._scores.repeat(len(encoded.users), 1)


class LastItemCooccurrence:
    """Scores an item by the number of users whose train history holds both it and the newest item of the history.

    The newest item itself counts 0. Ties go to the more popular item, whose popularity adds less than a count.
    """

    max_history_items = 1

    def __init__(self, dataset: Dataset) -> None:
        self._num_items = dataset.num_items
        users, self._items = _distinct_pairs(dataset)
        self._user_offsets = _offsets(users, dataset.num_users)
        self._users = users[np.argsort(self._items, kind="stable")]
        self._item_offsets = _offsets(self._items, dataset.num_items + 1)
        counts = dataset.train_counts()
        # At most 1/2, so that float32 cannot round a count with its share up to the next count.
        self._popularity = (counts / (2 * max(1, counts.max()))).astype(np.float32)

    @property
    def num_items(self) -> int:
        """V."""
        return self._num_items

    def read(self, batch: Batch) -> Encoded:
        """Return the newest item (B,) of each history."""
        items, lengths = batch.histories
        return Encoded(items[torch.arange(len(items)), lengths - 1])

    def score(self, encoded: Encoded) -> Tensor:
        """(b, V+1) for newest items; column 0 is -inf."""
        scores = np.stack([self._counts(item) for item in encoded.users.tolist()]) + self._popularity
        scores[:, 0] = -np.inf
        return torch.from_numpy(scores)

    def _counts(self, item: int) -> NDArray[np.float32]:
        users = self._users[self._item_offsets[item] : self._item_offsets[item + 1]]
        inside = _spans(self._user_offsets[users], self._user_offsets[users + 1])
        counts = np.bincount(self._items[inside], minlength=self._num_items + 1)
        counts[item] = 0
        return counts.astype(np.float32)


def _distinct_pairs(dataset: Dataset) -> tuple[Ints, Ints]:
    """Users and items of the distinct train events, sorted by user."""
    base = dataset.num_items + 1
    pairs = [np.unique(users * base + items) for users, items in dataset.train_events()]  # each of other users
    users, items = np.divmod(np.concatenate(pairs), base)
    return users, items


def _offsets(owners: Ints, num_owners: int) -> Ints:
    """(num_owners+1,): where each owner's entries start once they are sorted by owner."""
    offsets = np.zeros(num_owners + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=num_owners), out=offsets[1:])
    return offsets


def _spans(starts: Ints, ends: Ints) -> Ints:
    """The positions starts[0]..ends[0]-1, starts[1]..ends[1]-1, and so on, one after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    positions: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return positions
