"""Raw logs as tables of events, whatever they look like.

A table of events has `user_id` and `item_id` (text, or whole numbers where the file has types), `timestamp` (whole
number or null), `nanosecond` (of dates that are finer than a second, else 0), `rating` (where a rule needs it) and the
columns that `Events.ties` names, in whose order events of the same time are.

Everything is an Ibis expression; what only the embedded engine can do (files that are no Parquet, the order of rows,
which line is wrong) is asked of it alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ibis
from ibis.expr.types import Column, Table

from slmrec.data.engine import is_embedded, keep, one_line, value
from slmrec.data.files import Source, inspect
from slmrec.data.kinds import Format
from slmrec.data.layouts import KNOWN, missing, place
from slmrec.data.per_user import Histories, read_lines_of_users, read_lists
from slmrec.data.rejects import OnBadRow, Reject, settled
from slmrec.data.tables import Fault, Opened, faults_of, faults_told, good_rows, is_empty, reject, with_table
from slmrec.data.times import parsed_times, why_no_time
from slmrec.errors import ConfigError, DataError

_SUFFIXES_OF_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Reading:
    """How a log is read; the settings of `prepare` of the same names."""

    format: Format
    columns: tuple[str, ...] | None
    user_col: str | None
    item_col: str | None
    time_col: str | None
    rating_col: str | None
    tie_col: str | None
    order: Literal["time", "file"]
    on_bad_row: OnBadRow
    needs_rating: bool
    """Whether a rule asks for ratings."""


class Events(NamedTuple):
    """A log that was read."""

    table: Table
    ties: tuple[str, ...]
    """Columns of the table: the order of events of the same time."""
    layout: dict[str, str]
    """What was found: the format, and the column of each setting."""
    rejects: list[Reject]
    titles: Table | None = None
    """`item_id`, `title`, `row`, where the log itself has titles."""


def read_events(engine: Any, spill: Path, input: str, reading: Reading) -> Events:
    """The events of a log.

    Whole numbers are timestamps as they are, in whatever unit; dates become seconds since 1970-01-01 UTC, and a date
    without a zone is UTC.

    Args:
        engine: from `connect`.
        spill: a folder for temporary files.
        input: a file, or a folder of parts; for another engine than the embedded one, Parquet or the name of a table.
        reading: how to read it.

    Raises:
        ConfigError: the engine cannot do what the settings ask for.
        DataError: the log cannot be read as events; the message names the file, the line or row, and the value.
    """
    if not is_embedded(engine):
        return _events_where_they_live(engine, input, reading)
    named = (reading.user_col, reading.item_col, reading.time_col, *(reading.columns or ()))
    source = inspect(Path(input), reading.format, KNOWN | {name for name in named if name})
    with faults_told(source):
        return _events_of_file(engine, spill, source, reading)


def _events_of_file(engine: Any, spill: Path, source: Source, reading: Reading) -> Events:
    if source.kind == "sequences":
        _refuse_columns(source, reading)
        return _ordered(source, read_lines_of_users(engine, source, reading.on_bad_row))
    if source.kind == "reference":
        columns = {"user_col": reading.user_col, "item_col": reading.item_col, "title_col": None}
        return _ordered(source, read_lists(engine, spill, source, columns, reading.on_bad_row))
    return _events_of_table(engine, spill, source, reading)


def _refuse_columns(source: Source, reading: Reading) -> None:
    for setting in ("user_col", "item_col", "time_col", "rating_col", "tie_col", "columns"):
        column = getattr(reading, setting)
        if column:
            raise DataError(
                f"{source.path}: prepare.{setting} is {column!r}, but one user a line has no columns; leave it out, or "
                "set prepare.format if the file is a table"
            )


def _ordered(source: Source, histories: Histories) -> Events:
    """Events that have an order and no times."""
    if not value(histories.events.count()):
        raise _no_events(source, histories.rejects)
    table = histories.events.mutate(timestamp=ibis.literal(None, "int64"), nanosecond=ibis.literal(0, "int64"))
    layout = {"format": source.kind} | histories.layout
    return Events(table, ("row",), layout, histories.rejects, histories.titles)


def _events_of_table(engine: Any, spill: Path, source: Source, reading: Reading) -> Events:
    return with_table(
        engine, spill, source, reading.columns, reading.on_bad_row, lambda opened: _events_of_opened(opened, reading)
    )


def _events_of_opened(opened: Opened, reading: Reading) -> Events:
    source = opened.source
    layout = _layout(source.path, opened.head.names, reading)
    raw = {setting: opened.column(name) for setting, name in layout.items()}
    columns, faults = _parsed(source.path, raw, layout)
    table, rejects = good_rows(opened, columns, faults)
    if not value(table.count()):
        raise _no_events(source, rejects)
    ties = ("tie", "row") if reading.tie_col else ("row",)
    return Events(table, ties, {"format": source.kind} | layout, rejects)


def _no_events(source: Source, rejects: list[Reject]) -> DataError:
    if rejects:
        return DataError(f"{source.path}: none of its {len(rejects):,} rows is an event; {rejects[0].what()}")
    return DataError(f"{source.path}: has columns but no rows; expected one event a row")


def _layout(path: Path | str, names: list[str], reading: Reading) -> dict[str, str]:
    """The name of the column of each setting, for those columns that there are."""
    needed = {"user_col": True, "item_col": True, "time_col": reading.order == "time"}
    if reading.needs_rating:
        needed["rating_col"] = True
    layout = {}
    for setting, is_needed in needed.items():
        wanted = getattr(reading, setting)
        at = place(path, names, setting, wanted)
        if at is not None:
            layout[setting] = names[at]
        elif is_needed:
            raise missing(path, names, setting, wanted)
    if reading.tie_col:
        layout["tie_col"] = names[place(path, names, "tie_col", reading.tie_col) or 0]
    return layout


def _parsed(path: Path | str, raw: dict[str, Column], layout: dict[str, str]) -> tuple[dict[str, Any], list[Fault]]:
    """The columns of events, and what may be wrong with them."""
    user, item = (_id(path, layout[setting], raw[setting]) for setting in ("user_col", "item_col"))
    columns: dict[str, Any] = {"user_id": user, "item_id": item}
    faults = [
        Fault(is_empty(ids), layout[setting], raw[setting], lambda _: "expected an id")
        for setting, ids in (("user_col", user), ("item_col", item))
    ]
    columns |= {"timestamp": ibis.literal(None, "int64"), "nanosecond": ibis.literal(0, "int64")}
    if "time_col" in layout:
        times = parsed_times(raw["time_col"])
        columns |= {"timestamp": times.timestamp, "nanosecond": times.nanosecond}
        expected = lambda text: why_no_time(text, times)  # noqa: E731
        faults.append(Fault(times.timestamp.isnull(), layout["time_col"], raw["time_col"], expected))
    if "rating_col" in layout:
        rating = columns["rating"] = raw["rating_col"].try_cast("float64")
        faults.append(
            Fault(
                rating.isnull() | rating.isnan(), layout["rating_col"], raw["rating_col"], lambda _: "expected a number"
            )
        )
    if "tie_col" in layout:
        columns["tie"] = raw["tie_col"]
    return columns, faults


def _id(path: Path | str, name: str, ids: Column) -> Column:
    """Whole numbers or text."""
    kind = ids.type()
    if kind.is_integer():
        return ids.try_cast("int64")
    if not kind.is_string():
        raise DataError(
            f"{path}: column {name!r} holds {kind}, expected ids that are text or whole numbers; convert the "
            "column (missing ids turn whole numbers into float64)"
        )
    return ids


def _events_where_they_live(engine: Any, input: str, reading: Reading) -> Events:
    """Of an engine that has no order of rows: events of the same time are in the order of `tie_col`, or the items'."""
    table = _table_of(engine, input)
    if reading.order == "file" and not reading.tie_col:
        raise ConfigError(
            f"prepare.order is file, but the rows of {input} have no order in the engine {engine.name}; set "
            "prepare.tie_col to the column that numbers them"
        )
    layout = _layout(input, list(table.columns), reading)
    columns, faults = _parsed(input, {setting: table[name] for setting, name in layout.items()}, layout)
    stored = keep(engine, table.select(**columns, **faults_of(faults)))
    faulty = stored.filter(stored.fault.notnull()).select("fault", "value")
    found = (faulty if reading.on_bad_row == "skip" else faulty.limit(1)).to_pyarrow().to_pylist()
    rejects = [reject(Path(input), 0, faults[row["fault"]], row["value"], "a row, number") for row in found]
    good = stored.filter(stored.fault.isnull()).drop("fault", "value")
    if not value(good.count()):
        raise DataError(f"{input}: has no rows; expected one event a row")
    ties = ("tie", "item_id") if reading.tie_col else ("item_id",)
    return Events(good, ties, {"format": f"{engine.name} table"} | layout, settled(rejects, reading.on_bad_row))


def _table_of(engine: Any, input: str) -> Table:
    path = Path(input)
    if path.is_file() and path.suffix not in _SUFFIXES_OF_PARQUET:
        raise ConfigError(
            f"{input}: the engine {engine.name} reads Parquet and its own tables; leave prepare.engine out, or write "
            "the log as Parquet"
        )
    *database, name = input.split(".")
    try:
        if path.suffix in _SUFFIXES_OF_PARQUET or path.is_dir():
            return engine.read_parquet(input)
        return engine.table(name, database=tuple(database) or None)
    except Exception as error:  # drivers of databases have no error in common
        raise DataError(
            f"{input}: the engine {engine.name} has no such table and reads no such file ({one_line(error)[:200]}); "
            "give Parquet, or the name of a table"
        ) from None
