"""Prepared data sets, memory-mapped and cut into samples by leave-one-out or by time.

Spans of samples are computed on demand, so the memory does not grow with the number of users or samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.data.event_times import EventTimes
from slmrec.data.histories import give_back_pages, open_histories, read_facts
from slmrec.errors import DataError
from slmrec.types import PER_SECOND, Unit

Ints = NDArray[np.int64]
Items = NDArray[np.integer[Any]]
Spans = tuple[Ints, Ints, Ints]
Users = Ints | slice
"""Users (from 0), as an array of any shape or as a range."""

CHUNK = 2**16
"""Users or samples processed at a time when all of them are."""
MANY_ROWS = 2**12
"""More random rows than this touch nearly all pages of the offsets; batches are smaller."""
NEIGHBOURS = 16
"""Users whose samples share one stored count; a divisor of `CHUNK`."""


@dataclass(frozen=True)
class Samples:
    """Samples as spans of one flat array of items; spans are computed on demand for given rows (from 0).

    A sample with the span (start, end) has the history `flat[start:end]` and the target `flat[end]`. With a target at
    every position, its targets are `flat[start+1 : end+1]`.

    Example:
        >>> samples = Samples.of(np.array([4, 2, 9]), np.array([0]), np.array([2]), np.array([0]))
        >>> len(samples), samples.lengths(np.array([0])).tolist()
        (1, [2])
    """

    flat: Items
    """The items of all users, concatenated."""
    num: int
    """The number of samples."""
    spans: Callable[[Ints], Spans]
    """Maps rows to the starts, the ends and the users (from 0) of their samples."""
    times: EventTimes | None = None
    """Times of the events of `flat`; None: the data have none."""

    @classmethod
    def of(cls, flat: Items, starts: Ints, ends: Ints, users: Ints) -> "Samples":
        """Create samples from explicit spans and users."""
        return cls(flat, len(starts), lambda rows: (starts[rows], ends[rows], users[rows]))

    def __len__(self) -> int:
        return self.num

    def lengths(self, rows: Ints) -> Ints:
        """Return the number of items in the sample of each row."""
        starts, ends, _ = self.spans(rows)
        return ends - starts

    def clipped_lengths(self, max_history_items: int) -> Items:
        """Return (num,) the lengths of the samples limited to `max_history_items`, in the smallest integer type."""
        lengths = np.empty(len(self), np.min_scalar_type(max_history_items))
        for rows in self.chunks():
            lengths[rows] = np.minimum(self.lengths(rows), max_history_items)
        return lengths

    def users(self) -> Ints:
        """Return (num,) the user (from 0) of each sample."""
        return np.concatenate([np.empty(0, np.int64), *(self.spans(rows)[2] for rows in self.chunks())])

    def chunks(self) -> Iterator[Ints]:
        """Yield all rows in order, in chunks."""
        return (np.arange(rows.start, rows.stop) for rows in _chunks(len(self)))

    def take(self, rows: Ints) -> "Samples":
        """Select the samples of some rows, in their order."""
        return Samples(self.flat, len(rows), lambda some: self.spans(rows[some]), self.times)

    def times_at(self, events: Ints, unit: Unit) -> Ints:
        """Return the times of some events of `flat` in a unit.

        Raises:
            DataError: the data have no times.
        """
        if self.times is None:
            raise DataError("the model reads the times of events, but the data set has none; prepare a log with times")
        return self.times.at(events, unit)


@dataclass(frozen=True)
class Dataset:
    """Histories in time order, and the original ids of users and items.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from slmrec import prepare
        >>> events = pa.table({"user_id": ["u"] * 4, "item_id": ["a", "b", "c", "d"], "timestamp": [1, 2, 3, 4]})
        >>> with TemporaryDirectory() as folder:
        ...     dataset = Dataset.load(prepare(events, f"{folder}/shop"))
        ...     dataset.num_users, dataset.num_items, len(dataset.held_out("test"))
        (1, 4, 1)
    """

    flat: Items
    """Items 1..V, user after user, oldest first."""
    offsets: Ints
    """(U+1,): user u (from 0) owns `flat[offsets[u]:offsets[u+1]]`."""
    users: pa.Table | Path
    """The table of users or its file: user u (from 0) has the `user_id` in row u."""
    items: pa.Table | Path
    """The table of items or its file: item i has the `item_id`, and optionally the `title`, in row i-1."""
    fingerprint: str
    """Identifies the prepared data; models record it."""
    cuts: NDArray[np.int32] | None = None
    """(U, 2): the number of events of each user before validation and before test; None: leave-one-out."""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    """The entries `rules`, `sources` and `timestamp_unit` of `dataset.json`."""
    times: EventTimes | None = None
    """Times of the events of `flat`, read on first use; None: they have none."""

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Load a data set that `prepare` wrote; histories are memory-mapped, ids are read on first use.

        Raises:
            DataError: the folder is not a complete data set.
        """
        for name in ("dataset.json", "interactions.parquet", "items.parquet", "users.parquet"):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: not a prepared data set ({name} is missing); run prepare")
        facts = read_facts(folder)
        flat, offsets, cuts = open_histories(folder)
        users, items = folder / "users.parquet", folder / "items.parquet"
        preparation: dict[str, Any] = {
            name: facts[name] for name in ("rules", "sources", "timestamp_unit") if name in facts
        }
        unit = preparation.get("timestamp_unit")
        times = EventTimes(unit, folder) if unit in PER_SECOND else None
        return cls(flat, offsets, users, items, str(facts.get("fingerprint", "")), cuts, preparation, times)

    @property
    def num_users(self) -> int:
        """The number of users U."""
        return len(self.offsets) - 1

    @cached_property
    def num_items(self) -> int:
        """The number of items V."""
        items = pq.read_metadata(self.items) if isinstance(self.items, Path) else self.items
        return int(items.num_rows)

    @cached_property
    def user_ids(self) -> pa.Array:
        """(U,) the original user ids."""
        return _column(self.users, "user_id")

    @cached_property
    def item_ids(self) -> pa.Array:
        """(V,) the original item ids: item i has the one in row i-1."""
        return _column(self.items, "item_id")

    @cached_property
    def _item_schema(self) -> pa.Schema:
        return pq.read_schema(self.items) if isinstance(self.items, Path) else self.items.schema

    @cached_property
    def titles(self) -> pa.Array | None:
        """(V,) the titles of the items; None if the data set has none."""
        return _column(self.items, "title") if "title" in self._item_schema.names else None

    def item_columns(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return the values (V,) of columns of the table of items; columns that it lacks are left out."""
        return {name: _column(self.items, name).to_pylist() for name in names if name in self._item_schema.names}

    def other_item_columns(self) -> dict[str, pa.Array]:
        """Return the columns (V,) of the table of items beside ids and titles, by name."""
        own = ("item", "item_id", "title")
        return {name: _column(self.items, name) for name in self._item_schema.names if name not in own}

    @property
    def split_rule(self) -> Literal["leave_one_out", "temporal", "newest"]:
        """The rule by which events are held out; `newest`: the last event of some users, as `slmrec update` does."""
        if self.cuts is None:
            return "leave_one_out"
        return "newest" if self.preparation.get("rules", {}).get("split") == "newest" else "temporal"

    def train_counts(self) -> Ints:
        """Return (V+1,) the number of training events of each item."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for _, items in self.train_events():
            counts += np.bincount(items, minlength=len(counts))
        return counts

    def train_events(self) -> Iterator[tuple[Ints, Items]]:
        """Yield users (from 0) and items of the training events in order, in chunks of users."""
        for users in self._user_chunks():
            first, valid, _, last = self._bounds(users)
            parts = np.stack([valid - first, last - valid], axis=1).ravel()
            trained = np.repeat(np.tile([True, False], len(first)), parts)
            owners = np.repeat(np.arange(users.start, users.stop), valid - first)
            yield owners, self.flat[first[0] : last[-1]][trained]

    def held_out(self, split: Literal["valid", "test"]) -> Samples:
        """Return one sample per user whose target is the user's first event in a split.

        With leave-one-out, the target is the second last event (valid) or the last one (test). The history consists of
        all earlier events. A user without an event in the split, or without an earlier one, has no sample.

        Raises:
            DataError: no user has a sample.
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
        """Return the training samples; validation and test events are neither inputs nor targets.

        Args:
            supervision: `last_position` gives one sample per user, `every_position` one per window of a user's
                history, `every_prefix` one per item with a predecessor.
            max_history_items: the maximum number of items per sample; the newest ones are kept.
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
        """Return the starts of the users' events, of validation and of test, and the ends."""
        first, last = self.offsets[:-1][users], self.offsets[1:][users]
        if self.cuts is None:
            return first, np.maximum(first, last - 2), np.maximum(first, last - 1), last
        cuts = self.cuts[users]
        return first, first + cuts[..., 0], first + cuts[..., 1], last

    def _user_chunks(self) -> Iterator[slice]:
        """Yield all users in order, in chunks; the pages read for a chunk are released afterwards."""
        for users in _chunks(self.num_users):
            yield users
            give_back_pages(self.flat, self.offsets, self.cuts)

    def _samples(self, count: Callable[[Users], Ints], cut: Callable[[Ints, Ints], tuple[Ints, Ints]]) -> Samples:
        """Create samples that are numbered user after user.

        Args:
            count: returns the number of samples of each user.
            cut: returns the start and the end of the nth sample (from 0) of each user.
        """
        numbering = _Numbering(map(count, self._user_chunks()), count, self.num_users)

        def spans(rows: Ints) -> Spans:
            users, nth = numbering.find(rows)
            starts, ends = cut(users, nth)
            if len(rows) > MANY_ROWS:
                give_back_pages(self.offsets, self.cuts)
            return starts, ends, users

        return Samples(self.flat, numbering.total, spans, self.times)


class _Numbering:
    """Numbering of rows user after user; stores one count per 16 users and recomputes the counts within them."""

    def __init__(self, counts: Iterator[Ints], count: Callable[[Users], Ints], num_users: int) -> None:
        """Create a numbering from the counts of all users, in chunks, and a function that counts the rows of users."""
        sums = [np.add.reduceat(chunk, np.arange(0, len(chunk), NEIGHBOURS)) for chunk in counts]
        self._before = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sums]))
        self._count, self._num_users = count, num_users

    @property
    def total(self) -> int:
        """The number of rows."""
        return int(self._before[-1])

    def find(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the user of each row, and its number (from 0) among the rows of that user."""
        group = np.searchsorted(self._before, rows, side="right") - 1
        users = np.minimum(group[:, None] * NEIGHBOURS + np.arange(NEIGHBOURS), self._num_users - 1)
        counts = self._count(users)
        up_to, rest = np.cumsum(counts, axis=1), rows - self._before[group]
        index = np.arange(len(rows)), np.sum(up_to <= rest[:, None], axis=1)
        return users[index], rest - up_to[index] + counts[index]


def _chunks(num: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, num)) for start in range(0, num, CHUNK))


def _column(table: pa.Table | Path, name: str) -> pa.Array:
    read = pq.read_table(table, columns=[name]) if isinstance(table, Path) else table
    return read[name].combine_chunks()
