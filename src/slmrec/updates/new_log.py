"""The log and the table of items of an update, read by the rules of the run, with ids in the type of the run's."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slmrec.config import PrepareConfig
from slmrec.data.dataset import Dataset, Ints
from slmrec.data.ids import id_text
from slmrec.data.prepare import describe_source, prepare_dataset, read_item_table
from slmrec.errors import DataError
from slmrec.pipeline.new_events import WITHOUT_FILTERS
from slmrec.types import Unit

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewLog:
    """Events of a new log, user after user, oldest first."""

    user_ids: pa.Array
    """Ids of the users of the log, in the type of the run's ids."""
    item_ids: pa.Array
    """Ids of the items of the log."""
    titles: pa.Array | None
    """Titles of these items, where the log has them itself."""
    users: Ints
    """(events,) index of the user of each event in `user_ids`."""
    items: Ints
    """(events,) index of the item of each event in `item_ids`."""
    times: Ints | None
    """(events,) times in `unit`; None: the log has none."""
    unit: Unit | None
    source: dict[str, object]
    """Name, size and checksum of the log."""
    num_rejected_rows: int

    def without_events(self) -> "NewLog":
        """Return the log without its events."""
        none = np.empty(0, np.int64)
        ids = self.user_ids.slice(0, 0), self.item_ids.slice(0, 0)
        return replace(
            self,
            user_ids=ids[0],
            item_ids=ids[1],
            titles=None,
            users=none,
            items=none,
            times=None if self.times is None else none,
        )


def read_log(settings: PrepareConfig, known: Dataset, log: str) -> NewLog:
    """Read the log of an update with the run's settings of `prepare`, without its filters of rare users and items.

    Args:
        settings: Settings of the run's `prepare`.
        known: Data set of the run.
        log: File or folder.

    Raises:
        DataError: The log cannot be read, its ids are not of the type of the run's, or only one of the two has times.
    """
    # Which ids are whole numbers is a fact of the run's whole column, so the new log keeps them as they are written.
    reading = settings.model_copy(update={**WITHOUT_FILTERS, "id_type": "text"})
    with TemporaryDirectory(prefix="slmrec-") as name:
        counts = prepare_dataset(reading, Path(name), log)
        new = Dataset.load(Path(name))
        _check_times(new, known, log)
        return NewLog(
            ids_like(new.user_ids, known.user_ids, log, "user_id"),
            ids_like(new.item_ids, known.item_ids, log, "item_id"),
            new.titles,
            np.repeat(np.arange(new.num_users), np.diff(new.offsets)),
            np.asarray(new.flat, np.int64) - 1,
            None if new.times is None else np.array(new.times.stored, np.int64),
            None if new.times is None else new.times.unit,
            describe_source(Path(log)),
            int(counts["num_rejected_rows"]),
        )


def _check_times(new: Dataset, known: Dataset, log: str) -> None:
    if (new.times is None) != (known.times is None):
        has, other = ("no times", "times") if new.times is None else ("times", "no times")
        raise DataError(
            f"{log}: its events have {has}, but those of the run have {other}; give a log with the columns of the "
            "run's log (prepare.time_col names the column of times)"
        )


def ids_like(ids: pa.Array, known: pa.Array, log: str, name: str) -> pa.Array:
    """Return ids, which are text, in the type of the ids of a run.

    Raises:
        DataError: An id is not a whole number but those of the run are, or the other way round.

    Example:
        >>> ids_like(pa.array(["7.0", "9"]), pa.array([1, 2]), "day.csv", "item_id").to_pylist()
        [7, 9]
    """
    if pa.types.is_integer(known.type):
        values = []
        for text in ids.to_pylist():
            if (number := _whole_number(text, known.type)) is None:
                raise DataError(
                    f"{log}: {name} is {text!r}, but the ids of the run are whole numbers, such as {known[0].as_py()}; "
                    "correct the id, or name the column with the ids of the run"
                )
            values.append(number)
        return pa.array(values, known.type)
    if all(map(str.isdecimal, ids.to_pylist())) and not any(map(str.isdecimal, known.to_pylist())):
        raise DataError(
            f"{log}: {name} is {ids[0].as_py()!r}, a whole number as all others, but no id of the run is one; they "
            f"look like {known[0].as_py()!r}; name the column with the ids of the run"
        )
    return ids.cast(known.type)


def _whole_number(text: str, dtype: pa.DataType) -> int | None:
    """Return the text of an id as a whole number of some type; None if it is none."""
    try:
        return int(pa.scalar(int(id_text(text, whole_numbers=True)), dtype).as_py())
    except (ValueError, OverflowError, pa.ArrowInvalid):
        return None


def read_items(settings: PrepareConfig, known: Dataset, items: Path) -> pa.Table:
    """Read the table of items of an update, with the run's settings: one row an item, with the columns that are kept.

    Args:
        settings: Settings of the run's `prepare`.
        known: Data set of the run.
        items: File.

    Returns:
        `item_id` in the type of the run's ids, optionally `title`, and the columns of `prepare.item_columns`.

    Raises:
        DataError: The file cannot be read or lacks a column, or no id is of the type of the run's.
    """
    is_number = pa.types.is_integer(known.item_ids.type)
    table = read_item_table(settings, items, is_number)
    if not is_number:
        return table.set_column(0, "item_id", table["item_id"].combine_chunks().cast(known.item_ids.type))
    numbers = [_whole_number(text, known.item_ids.type) for text in table["item_id"].to_pylist()]
    is_valid = pa.array([number is not None for number in numbers])
    if (num := len(numbers) - sum(number is not None for number in numbers)) == len(numbers):
        raise DataError(
            f"{items}: item_id is {table['item_id'][0].as_py()!r}, but the ids of the run are whole numbers, such as "
            f"{known.item_ids[0].as_py()}; set prepare.items_id_col to the column with the ids of the run"
        )
    if num:
        _LOG.warning("update: %s items of %s are left out, whose ids are no whole numbers", f"{num:,}", items)
    return table.set_column(0, "item_id", pa.array(numbers, known.item_ids.type)).filter(is_valid)


def items_of_first_table(
    settings: PrepareConfig, known: Dataset, sources: list[dict[str, object]], items: Path, table: pa.Table
) -> pa.Array:
    """Return the ids of the table of items that the run was prepared with; none if that file is no longer the same.

    Args:
        settings: Settings of the run's `prepare`.
        known: Data set of the run.
        sources: Inputs of the run, as `dataset.json` has them.
        items: Table of items of the update.
        table: Its content.
    """
    if settings.items is not None and len(sources) > 1:
        if describe_source(items) == sources[1] | {"file": items.name}:
            return table["item_id"].combine_chunks()
        first = Path(settings.items)
        if first.exists() and describe_source(first) == sources[1]:
            return read_items(settings, known, first)["item_id"].combine_chunks()
    return pa.array([], known.item_ids.type)


def distinct_in_order(known: pa.Array, *others: pa.Array) -> pa.Array:
    """Return some ids, followed by those of the others that are not among them, in the order of the ids."""
    fresh = pc.unique(pa.chunked_array(others, known.type))
    fresh = fresh.filter(pc.invert(pc.is_in(fresh, value_set=known)))
    return pa.concat_arrays([known, fresh.take(pc.sort_indices(fresh))])
