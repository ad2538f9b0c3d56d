"""The prepared data set: read from its folder, cut into samples by leave-one-out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Cuts of one flat array of items: sample k is `flat[starts[k]:ends[k]]`, and `flat[ends[k]]` comes next.

    A sample read at every position has, in the same way, `flat[starts[k]+1 : ends[k]+1]` as its targets.
    """

    flat: Ints
    """All users' items, one after the other."""
    starts: Ints
    ends: Ints
    users: Ints
    """The user (from 0) each sample belongs to."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Ints:
        """Items in each sample."""
        return self.ends - self.starts

    def take(self, rows: Ints) -> "Samples":
        """The samples of these rows, in this order."""
        return Samples(self.flat, self.starts[rows], self.ends[rows], self.users[rows])


@dataclass(frozen=True)
class Dataset:
    """Histories in time order, and the caller's ids of users and items."""

    flat: Ints
    """Items 1..V, user after user, oldest first."""
    offsets: Ints
    """(U+1,): user u (from 0) owns `flat[offsets[u]:offsets[u+1]]`."""
    user_ids: pa.Array
    item_ids: pa.Array
    """Item i has the id at row i-1."""
    titles: pa.Array | None
    fingerprint: str
    """Identifies the prepared data; models carry it."""

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """The data set that `prepare` wrote into a folder.

        Raises:
            DataError: the folder is not a complete data set.
        """
        try:
            facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            interactions = pq.read_table(folder / "interactions.parquet", columns=["user", "item"])
            items = pq.read_table(folder / "items.parquet")
            users = pq.read_table(folder / "users.parquet")
        except FileNotFoundError as error:
            raise DataError(f"{folder}: not a prepared data set ({error.filename} is missing); run prepare") from None
        owners = interactions["user"].to_numpy()
        return cls(
            flat=interactions["item"].to_numpy().astype(np.int64),
            offsets=np.concatenate([[0], np.cumsum(np.bincount(owners - 1, minlength=users.num_rows))]).astype(
                np.int64
            ),
            user_ids=users["user_id"].combine_chunks(),
            item_ids=items["item_id"].combine_chunks(),
            titles=items["title"].combine_chunks() if "title" in items.column_names else None,
            fingerprint=facts["fingerprint"],
        )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.item_ids)

    def train_counts(self) -> Ints:
        """(V+1,): how often each item occurs in the train split."""
        last = self.offsets[1:]
        held_out = np.concatenate([last - 1, last - 2])
        counts = np.bincount(self.flat, minlength=self.num_items + 1)
        return counts - np.bincount(self.flat[held_out], minlength=self.num_items + 1)

    def held_out(self, split: Literal["valid", "test"]) -> Samples:
        """One sample a user: the whole history before its second last item (valid) or its last one (test)."""
        ends = self.offsets[1:] - (2 if split == "valid" else 1)
        return Samples(self.flat, self.offsets[:-1], ends, np.arange(self.num_users))

    def train(self, supervision: str, max_history_items: int) -> Samples:
        """The training samples; neither the valid nor the test item is among their inputs or targets.

        Args:
            supervision: `last_position` and `every_position` give one sample a user (every position: with as many
                windows as a long history needs), `every_prefix` one for each item that has a predecessor.
            max_history_items: the newest items kept in a sample.
        """
        first, last = self.offsets[:-1], self.offsets[1:] - 3  # `last` is the newest training item
        users = np.flatnonzero(last > first)
        first, last = first[users], last[users]
        if supervision == "last_position":
            return Samples(self.flat, np.maximum(first, last - max_history_items), last, users)
        step = 1 if supervision == "every_prefix" else max_history_items
        num = -((first - last) // step)  # ceil((last - first) / step)
        nth = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
        ends = np.repeat(last, num) - nth * step
        starts = np.maximum(np.repeat(first, num), ends - max_history_items)
        return Samples(self.flat, starts, ends, np.repeat(users, num))
