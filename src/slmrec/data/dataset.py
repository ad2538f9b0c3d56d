"""The prepared data set: mapped from its folder, cut into samples by leave-one-out or by time.

Nothing is held for every user or sample: spans are worked out for the rows that are asked for.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.data.histories import give_back_pages, open_histories
from slmrec.errors import DataError

Ints = NDArray[np.int64]
Items = NDArray[np.integer[Any]]
Spans = tuple[Ints, Ints, Ints]
Users = Ints | slice
"""Some users (from 0), in an array of any shape or in a row."""

CHUNK = 2**16
"""Users or samples that are looked at together when all of them are."""
MANY_ROWS = 2**12
"""So many rows at random touch nearly every page of the offsets, and a batch has fewer."""
NEIGHBOURS = 16
"""Users whose samples are counted together; divides `CHUNK`."""


@dataclass(frozen=True)
class Samples:
    """Cuts of one flat array of items, worked out for the rows (from 0) that are asked for.

    A sample with the span (start, end) is `flat[start:end]`, and `flat[end]` comes next. A sample read at every
    position has, in the same way, `flat[start+1 : end+1]` as its targets.
    """

    flat: Items
    """All users' items, one after the other."""
    num: int
    """How many samples there are."""
    spans: Callable[[Ints], Spans]
    """Where the samples of some rows start and end, and the users (from 0) they belong to."""

    @classmethod
    def of(cls, flat: Items, starts: Ints, ends: Ints, users: Ints) -> "Samples":
        """The samples of these spans and users."""
        return cls(flat, len(starts), lambda rows: (starts[rows], ends[rows], users[rows]))

    def __len__(self) -> int:
        return self.num

    def lengths(self, rows: Ints) -> Ints:
        """Items in each sample of some rows."""
        starts, ends, _ = self.spans(rows)
        return ends - starts

    def clipped_lengths(self, max_history_items: int) -> Items:
        """(num,) the items read of each sample, in the smallest type that holds them."""
        lengths = np.empty(len(self), np.min_scalar_type(max_history_items))
        for rows in self.chunks():
            lengths[rows] = np.minimum(self.lengths(rows), max_history_items)
        return lengths

    def users(self) -> Ints:
        """(num,) the user (from 0) of each sample."""
        return np.concatenate([np.empty(0, np.int64), *(self.spans(rows)[2] for rows in self.chunks())])

    def chunks(self) -> Iterator[Ints]:
        """All rows in order, some at a time."""
        return (np.arange(rows.start, rows.stop) for rows in _chunks(len(self)))

    def take(self, rows: Ints) -> "Samples":
        """The samples of these rows, in this order."""
        return Samples(self.flat, len(rows), lambda some: self.spans(rows[some]))


@dataclass(frozen=True)
class Dataset:
    """Histories in time order, and the caller's ids of users and items."""

    flat: Items
    """Items 1..V, user after user, oldest first."""
    offsets: Ints
    """(U+1,): user u (from 0) owns `flat[offsets[u]:offsets[u+1]]`."""
    users: pa.Table | Path
    """The table of users, or the file that holds it: user u (from 0) has the `user_id` at row u."""
    items: pa.Table | Path
    """The table of items, or the file that holds it: item i has the `item_id`, and perhaps `title`, at row i-1."""
    fingerprint: str
    """Identifies the prepared data; models carry it."""
    cuts: NDArray[np.int32] | None = None
    """(U, 2): how many events of each user come before validation and before test; None: leave-one-out."""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    """How it was prepared, as `dataset.json` says it: `rules` and `sources`."""

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """The data set that `prepare` wrote into a folder; histories are mapped, ids are read when asked for.

        Raises:
            DataError: the folder is not a complete data set.
        """
        for name in ("dataset.json", "interactions.parquet", "items.parquet", "users.parquet"):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: not a prepared data set ({name} is missing); run prepare")
        facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        flat, offsets, cuts = open_histories(folder)
        users, items = folder / "users.parquet", folder / "items.parquet"
        preparation = {name: facts[name] for name in ("rules", "sources") if name in facts}
        return cls(flat, offsets, users, items, facts["fingerprint"], cuts, preparation)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @cached_property
    def num_items(self) -> int:
        """V."""
        items = pq.read_metadata(self.items) if isinstance(self.items, Path) else self.items
        return int(items.num_rows)

    @cached_property
    def user_ids(self) -> pa.Array:
        """(U,) the caller's ids of the users."""
        return _column(self.users, "user_id")

    @cached_property
    def item_ids(self) -> pa.Array:
        """(V,) the caller's ids of the items: item i has the one at row i-1."""
        return _column(self.items, "item_id")

    @cached_property
    def titles(self) -> pa.Array | None:
        """(V,) the titles of the items, if they were given."""
        schema = pq.read_schema(self.items) if isinstance(self.items, Path) else self.items.schema
        return _column(self.items, "title") if "title" in schema.names else None

    @property
    def split_rule(self) -> Literal["leave_one_out", "temporal"]:
        """What the events are held out by."""
        return "leave_one_out" if self.cuts is None else "temporal"

    def train_counts(self) -> Ints:
        """(V+1,): how often each item occurs in the train split."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for _, items in self.train_events():
            counts += np.bincount(items, minlength=len(counts))
        return counts

    def train_events(self) -> Iterator[tuple[Ints, Items]]:
        """Users (from 0) and items of the events of the train split, in order, those of some users at a time."""
        for users in self._user_chunks():
            first, valid, _, last = self._bounds(users)
            parts = np.stack([valid - first, last - valid], axis=1).ravel()
            trained = np.repeat(np.tile([True, False], len(first)), parts)
            owners = np.repeat(np.arange(users.start, users.stop), valid - first)
            yield owners, self.flat[first[0] : last[-1]][trained]

    def held_out(self, split: Literal["valid", "test"]) -> Samples:
        """One sample a user: the whole history before the first event of a split.

        Under leave-one-out these are the second last event and the last one. A user without an event in the split, or
        without one before it, has no sample.

        Raises:
            DataError: no user has one.
        """
        number = {"valid": 1, "test": 2}[split]

        def count(users: Users) -> Ints:
            bounds = self._bounds(users)
            target = bounds[number]
            return np.logical_and(bounds[0] < target, target < bounds[number + 1]).astype(np.int64)

        def cut(users: Ints, nth: Ints) -> tuple[Ints, Ints]:
            bounds = self._bounds(users)
            return bounds[0], bounds[number]

        samples = self._samples(count, cut)
        if not len(samples):
            raise DataError(
                f"none of the {self.num_users} users has an event in the {split} split ({self.split_rule}) and one "
                "before it; prepare the data with longer histories or other times"
            )
        return samples

    def train(self, supervision: str, max_history_items: int) -> Samples:
        """The training samples; neither the valid nor the test events are among their inputs or targets.

        Args:
            supervision: `last_position` and `every_position` give one sample a user (every position: with as many
                windows as a long history needs), `every_prefix` one for each item that has a predecessor.
            max_history_items: the newest items kept in a sample.
        """
        one = np.iinfo(np.int64).max
        step = {"last_position": one, "every_position": max_history_items, "every_prefix": 1}[supervision]

        def count(users: Users) -> Ints:
            first, valid, *_ = self._bounds(users)
            num: Ints = -(np.minimum(first - (valid - 1), 0) // step)  # ceil(targets / step)
            return num

        def cut(users: Ints, nth: Ints) -> tuple[Ints, Ints]:
            first, valid, *_ = self._bounds(users)
            ends = valid - 1 - nth * step
            return np.maximum(first, ends - max_history_items), ends

        return self._samples(count, cut)

    def _bounds(self, users: Users) -> tuple[Ints, Ints, Ints, Ints]:
        """Where the events of users start, where those of validation and of test do, and where they end."""
        first, last = self.offsets[:-1][users], self.offsets[1:][users]
        if self.cuts is None:
            return first, np.maximum(first, last - 2), np.maximum(first, last - 1), last
        cuts = self.cuts[users]
        return first, first + cuts[..., 0], first + cuts[..., 1], last

    def _user_chunks(self) -> Iterator[slice]:
        """All users in order, some at a time; what was read of them is not kept in memory."""
        for users in _chunks(self.num_users):
            yield users
            give_back_pages(self.flat, self.offsets, self.cuts)

    def _samples(self, count: Callable[[Users], Ints], cut: Callable[[Ints, Ints], tuple[Ints, Ints]]) -> Samples:
        """Samples, user after user.

        Args:
            count: how many samples users have.
            cut: start and end of the nth sample (from 0) of each of some users.
        """
        numbering = _Numbering(map(count, self._user_chunks()), count, self.num_users)

        def spans(rows: Ints) -> Spans:
            users, nth = numbering.find(rows)
            starts, ends = cut(users, nth)
            if len(rows) > MANY_ROWS:
                give_back_pages(self.offsets, self.cuts)
            return starts, ends, users

        return Samples(self.flat, numbering.total, spans)


class _Numbering:
    """Rows numbered user after user, any number a user: keeps one number for 16 users, and counts within those anew."""

    def __init__(self, counts: Iterator[Ints], count: Callable[[Users], Ints], num_users: int) -> None:
        """Takes the rows of each user, chunk by chunk, and what counts those of any users."""
        sums = [np.add.reduceat(found, np.arange(0, len(found), NEIGHBOURS)) for found in counts]
        self._before = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sums]))
        self._count, self._num_users = count, num_users

    @property
    def total(self) -> int:
        """Rows in all."""
        return int(self._before[-1])

    def find(self, rows: Ints) -> tuple[Ints, Ints]:
        """The users of some rows, and which of the user's rows (from 0) it is."""
        group = np.searchsorted(self._before, rows, side="right") - 1
        users = np.minimum(group[:, None] * NEIGHBOURS + np.arange(NEIGHBOURS), self._num_users - 1)
        counts = self._count(users)
        up_to, left = np.cumsum(counts, axis=1), rows - self._before[group]
        own = np.arange(len(rows)), np.sum(up_to <= left[:, None], axis=1)
        return users[own], left - up_to[own] + counts[own]


def _chunks(num: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, num)) for start in range(0, num, CHUNK))


def _column(table: pa.Table | Path, name: str) -> pa.Array:
    read = pq.read_table(table, columns=[name]) if isinstance(table, Path) else table
    return read[name].combine_chunks()
