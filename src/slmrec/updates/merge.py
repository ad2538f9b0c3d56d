"""The data of an update: known and new events under the rules of the run, where known users and items keep their place.

Rules that remove rare users and items decide about new ones alone; events of those that stay too rare wait in a file of
the data set for the next update.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.config import PrepareConfig
from slmrec.data.dataset import Dataset, Ints
from slmrec.data.event_times import in_unit
from slmrec.data.histories import HELD_OUT, read_facts
from slmrec.data.prepare import ROWS_PER_PART, complete_dataset
from slmrec.errors import DataError
from slmrec.pipeline.new_events import Events, are_among
from slmrec.types import PER_SECOND, Unit
from slmrec.updates.new_log import NewLog, distinct_in_order

WAITING = "waiting.parquet"
"""File of a data set with the events of users and items that have too few of them so far."""
Bools = NDArray[np.bool_]


class Admitted(NamedTuple):
    """Events, users and items after the rules."""

    events: Events
    """Events that are kept, in the order of users and of their histories; users from 0 and items from 1."""
    users: Bools
    """Which of all users are kept."""
    items: Bools
    """Which of all items are kept."""
    waiting: Events
    """Events of users and items that are not known and too rare."""


@dataclass(frozen=True)
class Changes:
    """Data of an update before they are written."""

    events: Events
    """All events in the order of users and of their histories; users from 0 and items from 1."""
    unit: Unit | None
    """Unit of their times; None: they have none."""
    user_ids: pa.Array
    """Known ids, then new ones."""
    items: pa.Table
    """Table of known items, then of new ones."""
    waiting: pa.Table
    """Events of users and items with too few of them so far."""
    num_new_users: int
    num_new_items: int
    num_known: int
    """Number of events of the new log that were known."""
    source: dict[str, object]
    num_rejected_rows: int

    @property
    def num_new_events(self) -> int:
        """Number of events that the data set did not have."""
        return int(self.events.is_new.sum())

    @property
    def is_empty(self) -> bool:
        """True if there is neither a new event nor a new item."""
        return not (self.num_new_events or self.num_new_items)


def merge(
    settings: PrepareConfig, source: Path, new: NewLog, table: pa.Table | None = None, left_out: pa.Array | None = None
) -> Changes:
    """Join the events of a new log, and the items of a table, with those of a data set.

    Args:
        settings: Settings of the run's `prepare`.
        source: Folder of the data set.
        new: The new log.
        table: Items; those that the data set lacks join it even without an event.
        left_out: Ids of items that join only with enough events, since an earlier table had them too.

    Raises:
        DataError: A column of the table does not have the type of the known one.
    """
    known = Dataset.load(source)
    waiting = _waiting_of(source, known)
    own_ids = table["item_id"].combine_chunks() if table is not None else known.item_ids.slice(0, 0)
    user_ids = distinct_in_order(known.user_ids, new.user_ids, waiting["user_id"].combine_chunks())
    item_ids = distinct_in_order(known.item_ids, new.item_ids, waiting["item_id"].combine_chunks(), own_ids)
    unit = _finer(None if known.times is None else known.times.unit, new.unit)
    old = _known_events(known, unit)
    waited = _events_of(waiting, user_ids, item_ids, known, unit)
    times = np.zeros(len(new.users), np.int64) if unit is None else in_unit(new.times, new.unit, unit)  # type: ignore[arg-type]
    users, items = _places(new.user_ids, user_ids)[new.users], _places(new.item_ids, item_ids)[new.items] + 1
    given = Events(users, items, times, np.ones(len(users), bool))
    earlier = Events(*(np.concatenate(pair) for pair in zip(_of_users(old, users), waited, strict=True)))
    fresh = _fresh(_by_user(given), _by_user(earlier), settings, known.num_items, has_times=unit is not None)
    joins = np.zeros(len(item_ids) + 1, bool)
    joins[_places(own_ids, item_ids) + 1] = True
    if left_out is not None:
        joins[_places(left_out, item_ids) + 1] = False  # those that are not in the catalogue have the place 0
    events = Events(*(np.concatenate(parts) for parts in zip(old, waited, fresh, strict=True)))
    is_known = np.arange(len(user_ids)) < known.num_users, np.arange(len(item_ids) + 1) <= known.num_items
    admitted = _admit(events, settings, is_known[0], is_known[1] | joins)
    kept_items = item_ids.filter(pa.array(admitted.items[1:]))
    return Changes(
        _renumbered(admitted),
        unit,
        user_ids.filter(pa.array(admitted.users)),
        _item_table(known, kept_items, table, new),
        _waiting_table(admitted.waiting, user_ids, item_ids, unit),
        int(admitted.users.sum()) - known.num_users,
        len(kept_items) - known.num_items,
        len(given.users) - len(fresh.users),
        new.source,
        new.num_rejected_rows,
    )


def _finer(one: Unit | None, other: Unit | None) -> Unit | None:
    return None if one is None or other is None else (one if PER_SECOND[one] >= PER_SECOND[other] else other)


def _places(sought: pa.Array, ids: pa.Array) -> Ints:
    """Return the places (from 0) of some ids among others, -1 for those that are absent."""
    found = pc.fill_null(pc.index_in(sought, value_set=ids), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _known_events(known: Dataset, unit: Unit | None) -> Events:
    num = len(known.flat)
    users = np.repeat(np.arange(known.num_users), np.diff(known.offsets))
    has_times = unit is not None and known.times is not None
    times = known.times.at(np.arange(num), unit) if has_times else np.zeros(num, np.int64)  # type: ignore[union-attr,arg-type]
    return Events(users, np.asarray(known.flat, np.int64), times, np.zeros(num, bool))


def _of_users(events: Events, users: Ints) -> Events:
    """Return the events of some users."""
    return events.take(np.isin(events.users, np.unique(users)))


def _fresh(given: Events, earlier: Events, settings: PrepareConfig, num_known_items: int, *, has_times: bool) -> Events:
    """Return the events of a new log that are neither known nor older than what `max_history` keeps of a user."""
    if settings.order == "file":
        given = _after_known(given, earlier, num_known_items)
    if not has_times:
        return given
    given = given.take(~are_among(given, earlier))
    if settings.max_history is not None and settings.order == "time" and len(earlier.users):
        users, starts, lengths = np.unique(earlier.users, return_index=True, return_counts=True)
        oldest = np.minimum.reduceat(earlier.times, starts)
        place = np.minimum(np.searchsorted(users, given.users), len(users) - 1)
        is_full = (users[place] == given.users) & (lengths[place] >= settings.max_history)
        given = given.take(~(is_full & (given.times <= oldest[place])))
    return given


def _by_user(events: Events) -> Events:
    return events.take(np.argsort(events.users, kind="stable"))


def _after_known(given: Events, earlier: Events, num_known_items: int) -> Events:
    """Return the events that follow the known ones, of users whose new histories contain these; there are no times.

    A new history may begin earlier than the known one, which `max_history` may have cut off, and contain items that the
    data set lacks, whose events it left out. The new history of any other user continues the known one.
    """
    keep = np.ones(len(given.users), bool)
    for user in np.unique(earlier.users):
        old = earlier.items[slice(*np.searchsorted(earlier.users, (user, user + 1)))]
        first, last = np.searchsorted(given.users, (user, user + 1))
        own = given.items[first:last]
        keep[first : first + _end_of_known(own, old, num_known_items)] = False
    return given.take(keep)


def _end_of_known(own: Ints, old: Ints, num_known_items: int) -> int:
    """Return the number of events up to the end of a known history within another one; 0 if it is not there."""
    places = np.flatnonzero(own <= num_known_items)
    for start in range(len(places) - len(old) + 1):
        if np.array_equal(own[places[start : start + len(old)]], old):
            return int(places[start + len(old) - 1]) + 1
    return 0


def _waiting_of(source: Path, known: Dataset) -> pa.Table:
    """Return the events that wait in a data set."""
    if (source / WAITING).is_file():
        return pq.read_table(source / WAITING)
    types = {"user_id": known.user_ids.type, "item_id": known.item_ids.type, "timestamp": pa.int64()}
    return pa.schema(list(types.items())).empty_table()


def _events_of(table: pa.Table, user_ids: pa.Array, item_ids: pa.Array, known: Dataset, unit: Unit | None) -> Events:
    """Return waiting events, which count as new once they are kept."""
    places = [
        _places(table[name].combine_chunks(), ids) for name, ids in (("user_id", user_ids), ("item_id", item_ids))
    ]
    times = np.asarray(table["timestamp"].to_numpy(), np.int64)
    if unit is not None and known.times is not None:
        times = in_unit(times, known.times.unit, unit)
    return Events(places[0], places[1] + 1, times, np.ones(len(table), bool))


def _waiting_table(events: Events, user_ids: pa.Array, item_ids: pa.Array, unit: Unit | None) -> pa.Table:
    columns = {"user_id": user_ids.take(pa.array(events.users)), "item_id": item_ids.take(pa.array(events.items - 1))}
    return pa.table({**columns, "timestamp": pa.array(events.times)})


def _admit(events: Events, settings: PrepareConfig, known_users: Bools, known_items: Bools) -> Admitted:
    """Order events, and apply the rules; users and items that are known stay, however few events they have."""
    by_time = events.times if settings.order == "time" else np.zeros_like(events.times)
    events = _without_repeats(events.take(np.lexsort((by_time, events.users))), settings.repeats)
    if settings.max_history is not None:
        ends = np.searchsorted(events.users, events.users, side="right")
        events = events.take(ends - np.arange(len(ends)) <= settings.max_history)
    keep = np.ones(len(events.users), bool)
    while True:
        num_of_user = np.bincount(events.users[keep], minlength=len(known_users))
        num_of_item = np.bincount(events.items[keep], minlength=len(known_items))
        users = known_users | (num_of_user >= settings.min_user_events)
        items = known_items | (num_of_item >= settings.min_item_events)
        kept = users[events.users] & items[events.items]
        if (kept == keep).all():
            break
        keep = kept
    users = known_users | (num_of_user > 0)
    items = known_items | (num_of_item > 0)
    items[0] = True
    return Admitted(_without_repeats(events.take(keep), settings.repeats), users, items, events.take(~keep))


def _without_repeats(events: Events, repeats: str) -> Events:
    """Apply the rule of repeated items to ordered events."""
    if repeats == "keep" or not len(events.users):
        return events
    if repeats == "drop":
        keys = events.users * (int(events.items.max()) + 1) + events.items
        return events.take(np.sort(np.unique(keys, return_index=True)[1]))
    same_user = np.diff(events.users, prepend=-1) == 0
    return events.take(~(same_user & (np.diff(events.items, prepend=-1) == 0)))


def _renumbered(admitted: Admitted) -> Events:
    """Return the events with the numbers of the users and items that are kept."""
    events, users = admitted.events, np.cumsum(admitted.users) - 1
    return events._replace(users=users[events.users], items=(np.cumsum(admitted.items) - 1)[events.items])


def _item_table(known: Dataset, item_ids: pa.Array, table: pa.Table | None, new: NewLog) -> pa.Table:
    """Return the table of all items: values of the new table come first, then known ones, then titles of the log."""
    old = pq.read_table(known.items) if isinstance(known.items, Path) else known.items
    columns = {name: old[name].combine_chunks() for name in old.column_names if name not in ("item", "item_id")}
    num = len(item_ids)
    joined = {
        name: pa.concat_arrays([column, pa.nulls(num - len(column), column.type)]) for name, column in columns.items()
    }
    if table is not None:
        rows = pc.index_in(item_ids, value_set=table["item_id"].combine_chunks())
        for name in table.column_names[1:]:
            values = table[name].combine_chunks().take(rows)
            joined[name] = _first_known(name, values, joined.get(name))
    if new.titles is not None:
        values = new.titles.take(pc.index_in(item_ids, value_set=new.item_ids))
        joined["title"] = _first_known("title", joined["title"], values) if "title" in joined else values
    order = sorted(joined, key=lambda name: name != "title")
    return pa.table({"item": np.arange(1, num + 1), "item_id": item_ids} | {name: joined[name] for name in order})


def _first_known(name: str, values: pa.Array, others: pa.Array | None) -> pa.Array:
    """Return values, and others where they are null."""
    if others is None:
        return values
    try:
        return pc.coalesce(values.cast(others.type), others)
    except pa.ArrowException:
        raise DataError(
            f"column {name} of the items has the type {values.type}, and in the run {others.type}; give values of that "
            "type"
        ) from None


def write_changes(changes: Changes, source: Path, output: Path, cuts: Ints) -> dict[str, float]:
    """Write the data set of an update.

    Args:
        changes: The data.
        source: Folder of the data set before the update.
        output: Existing folder.
        cuts: (U, 2) numbers of events of each user before validation and before test.

    Returns:
        The counts of `dataset.json`.
    """
    events, facts = changes.events, read_facts(source)
    starts = np.searchsorted(events.users, np.arange(len(changes.user_ids)))
    times = pa.nulls(len(events.users), pa.int64()) if changes.unit is None else pa.array(events.times)
    columns: dict[str, Any] = {"user": events.users + 1, "item": events.items, "timestamp": times}
    columns["position"] = np.arange(len(events.users)) - starts[events.users]
    pq.write_table(pa.table(columns), output / "interactions.parquet", row_group_size=ROWS_PER_PART)
    numbers = np.arange(1, len(changes.user_ids) + 1)
    pq.write_table(pa.table({"user": numbers, "user_id": changes.user_ids}), output / "users.parquet")
    pq.write_table(changes.items, output / "items.parquet")
    held_out = {"user": numbers, "valid_at": cuts[:, 0], "test_at": cuts[:, 1]}
    pq.write_table(pa.table(held_out), output / HELD_OUT)
    if len(changes.waiting):
        pq.write_table(changes.waiting, output / WAITING)
    rules = {name: value for name, value in facts["rules"].items() if name not in ("valid_from", "test_from")}
    facts |= {"rules": rules | {"split": "newest"}, "timestamp_unit": changes.unit}
    facts["sources"] = [*facts["sources"], changes.source]
    facts["counts"] = {
        "num_new_events": changes.num_new_events,
        "num_new_users": changes.num_new_users,
        "num_new_items": changes.num_new_items,
        "num_known_events": changes.num_known,
        "num_waiting_events": len(changes.waiting),
        "num_rejected_rows": changes.num_rejected_rows,
    }
    return complete_dataset(output, facts, [])
