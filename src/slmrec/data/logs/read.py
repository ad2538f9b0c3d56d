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
from slmrec.data.logs.columns import KNOWN, missing, place
from slmrec.data.logs.files import Source, inspect, lines
from slmrec.data.logs.formats import Format
from slmrec.data.logs.per_user import Histories, read_lines_of_users, read_lists
from slmrec.data.logs.row_errors import OnBadRow, Reject, settled
from slmrec.data.logs.tables import (
    Fault,
    Opened,
    faults_of,
    faults_told,
    good_rows,
    id_column,
    is_empty,
    reject,
    with_table,
)
from slmrec.data.logs.times import parsed_times, why_no_time
from slmrec.errors import ConfigError, DataError

_TIES = ("tie", "tie_as_is")
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
    if source.kind == "sequences" and reading.columns:  # they are named, so it is a table
        source = source._replace(kind="tsv" if "\t" in next(lines(source.files[0])) else "ssv")
    with faults_told(source):
        return _events_of_file(engine, spill, source, reading)


def _events_of_file(engine: Any, spill: Path, source: Source, reading: Reading) -> Events:
    if source.kind in {"sequences", "reference"}:
        _refuse_what_needs_columns(source, reading)
    if source.kind == "sequences":
        return _ordered(source, read_lines_of_users(engine, source, reading.on_bad_row))
    if source.kind == "reference":
        columns = {"user_col": reading.user_col, "item_col": reading.item_col, "title_col": None}
        return _ordered(source, read_lists(engine, spill, source, columns, reading.on_bad_row))
    return _events_of_table(engine, spill, source, reading)


def _refuse_what_needs_columns(source: Source, reading: Reading) -> None:
    """Of one user a line or row: no times, ratings or ties, and if it is a line, no columns at all."""
    absent = ["time_col", "rating_col", "tie_col"] + ["user_col", "item_col"] * (source.kind == "sequences")
    for setting in absent:
        column = getattr(reading, setting)
        if column:
            raise DataError(
                f"{source.path}: prepare.{setting} is {column!r}, but one user a line has no such columns; leave it "
                "out, or set prepare.format if the file is a table"
            )
    if reading.needs_rating:
        raise DataError(
            f"{source.path}: prepare.min_rating is set, but one user a line has no ratings; set prepare.min_rating=null"
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
    ties = (*_TIES, "row") if reading.tie_col else ("row",)
    return Events(table, ties, {"format": source.kind} | layout, rejects)


def _no_events(source: Source, rejects: list[Reject]) -> DataError:
    if rejects:
        return DataError(f"{source.path}: none of its {len(rejects):,} rows is an event; {rejects[0].what()}")
    return DataError(f"{source.path}: has columns but no rows; expected one event a row")


def _layout(path: Path | str, names: list[str], reading: Reading) -> dict[str, str]:
    """The name of the column of each setting, for those columns that there are."""
    wanted = {name: getattr(reading, name) for name in ("user_col", "item_col", "time_col", "rating_col", "tie_col")}
    if not wanted["tie_col"]:
        del wanted["tie_col"]
    places = {setting: place(path, names, setting, column) for setting, column in wanted.items()}
    if not reading.needs_rating:
        del places["rating_col"]
    optional = {"time_col"} if reading.order == "file" else set()
    absent = [setting for setting, at in places.items() if at is None and setting not in optional]
    if absent:
        raise missing(path, names, absent)
    return {setting: names[at] for setting, at in places.items() if at is not None}


def _parsed(path: Path | str, raw: dict[str, Column], layout: dict[str, str]) -> tuple[dict[str, Any], list[Fault]]:
    """The columns of events, and what may be wrong with them."""
    user, item = (id_column(path, layout[setting], raw[setting]) for setting in ("user_col", "item_col"))
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
    if "tie_col" in layout:  # numbers by value, also where they are text, then other text
        columns |= {"tie": raw["tie_col"].try_cast("float64"), "tie_as_is": raw["tie_col"]}
    return columns, faults


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
    rejects = [reject(Path(input), 0, faults[row["fault"]], row["value"], "row") for row in found]
    good = stored.filter(stored.fault.isnull()).drop("fault", "value")
    if not value(good.count()):
        raise DataError(f"{input}: has no rows; expected one event a row")
    ties = (*_TIES, "item_id") if reading.tie_col else ("item_id",)
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
