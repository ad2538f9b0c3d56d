"""Reading logs of all formats as tables of events.

A table of events has the columns `user_id` and `item_id` (whole numbers or text, as `slmrec.data.ids` says),
`timestamp` (seconds since 1970-01-01 UTC, or null), `nanosecond` (the rest of the time), `rating` (if `min_rating` is
set), `quantity` (if `quantity_col` is set), and the columns of `Events.ties`, which order events of the same time.

All tables are Ibis expressions. Text formats, the order of rows and the line numbers of invalid rows need the embedded
engine.
"""

import logging
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Column, Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import first_row, is_embedded, keep, value
from slmrec.data.logs.checks import Check, check_columns, convert_ids, id_checks, row_error, title_cells
from slmrec.data.logs.columns import (
    ALL_USUAL_NAMES,
    QUANTITIES,
    find_column,
    header,
    missing_columns,
    recognised,
    title_column,
)
from slmrec.data.logs.database import copied, is_row_store
from slmrec.data.logs.files import InputFiles, as_utf8, inspect, lines
from slmrec.data.logs.formats import normal_name
from slmrec.data.logs.per_user import UserHistories, read_lists, read_sequences
from slmrec.data.logs.row_errors import RowError, check_skippable
from slmrec.data.logs.rows import read_rows
from slmrec.data.logs.tables import (
    OpenTable,
    engine_errors_as_data_errors,
    valid_rows,
    with_table,
)
from slmrec.data.logs.times import ParsedTimes, decimal_number, invalid_time_reason, parse_times, with_times
from slmrec.errors import ConfigError, DataError
from slmrec.files import one_line, printable

_LOG = logging.getLogger(__name__)
_TIES = ("tie", "tie_as_is")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_LARGE_SHARE = 0.1
_FEW_ITEMS = 20
"""The largest cut-off of a metric."""


class Events(NamedTuple):
    """The events of a log."""

    table: Table
    ties: tuple[str, ...]
    """Columns of the table that order events of the same time."""
    columns: dict[str, str]
    """The detected format, and the column name of each setting."""
    errors: list[RowError]
    """The invalid rows, which the table does not contain."""
    titles: Table | None = None
    """`item_id`, `title` and `row`, if the log itself has a column of titles, which may be those of something else."""


def read_events(engine: Any, spill: Path, log: str, settings: PrepareConfig, embedded: Any = None) -> Events:
    """Read the events of a log.

    Numbers and dates become seconds and nanoseconds since 1970-01-01 UTC; a date without a time zone is in UTC.

    Args:
        engine: an engine from `connect`.
        spill: a folder for temporary files.
        log: a file, or a folder of parts; for other engines than the embedded one, Parquet or the name of a table.
        settings: the format, the columns, and how to treat invalid rows.
        embedded: the embedded engine, which computes for engines that only store the table; needed for these.

    Raises:
        ConfigError: the engine does not support the settings.
        DataError: the log cannot be read as events; the message has the file, the line or row, and the value.
    """
    if not is_embedded(engine):
        return _events_of_engine(engine, embedded, spill, log, settings)
    named = (settings.user_col, settings.item_col, settings.time_col, *(settings.columns or ()))
    usual = ALL_USUAL_NAMES | {name for name in named if name}
    files = as_utf8(inspect(Path(log), settings.format, usual, settings.encoding), spill)
    if files.format == "sequences" and settings.columns:  # named columns imply a table
        files = files._replace(format="tsv" if "\t" in next(lines(files.files[0])) else "ssv")
    if files.format == "reference" and settings.format == "auto" and _has_times(files, settings):
        files = files._replace(format="csv")  # events with baskets, not one user a row
    with engine_errors_as_data_errors(files):
        return _events_of_files(engine, spill, files, settings)


def _has_times(files: InputFiles, settings: PrepareConfig) -> bool:
    """Return whether the first row of a table has one time, not a list of them."""
    index = find_column(files.path, header(files, None).names, "time_col", settings.time_col)
    first = next(islice(read_rows(files, files.names[0]), 1, None), None)
    return index is not None and first is not None and not "".join(first.cells[index : index + 1]).startswith("[")


def _events_of_files(engine: Any, spill: Path, files: InputFiles, settings: PrepareConfig) -> Events:
    if files.format in {"sequences", "reference"}:
        _check_no_columns(files, settings)
    if files.format == "sequences":
        return _events_of_histories(files, read_sequences(engine, files, settings))
    if files.format == "reference":
        columns = {"user_col": settings.user_col, "item_col": settings.item_col, "title_col": None}
        return _events_of_histories(files, read_lists(engine, spill, files, columns, settings))
    return with_table(
        engine, spill, files, settings.columns, settings.on_bad_row, lambda table: _events_of_table(table, settings)
    )


def _check_no_columns(files: InputFiles, settings: PrepareConfig) -> None:
    """Reject settings of columns that a log with one user per row or line does not have."""
    absent = ["time_col", "rating_col", "quantity_col", "tie_col"]
    absent += ["user_col", "item_col"] * (files.format == "sequences")
    for setting in absent:
        column = getattr(settings, setting)
        if column:
            raise DataError(
                f"{files.path}: prepare.{setting} is {column!r}, but a log with one user a line has no such column; "
                "leave it out, or set prepare.format if the file is a table"
            )
    if settings.min_rating is not None:
        raise DataError(
            f"{files.path}: prepare.min_rating is set, but a log with one user a line has no ratings; set "
            "prepare.min_rating=null"
        )


def _events_of_histories(files: InputFiles, histories: UserHistories) -> Events:
    if not value(histories.events.count()):
        raise _no_events(files, histories.errors)
    table = histories.events.mutate(timestamp=ibis.literal(None, "int64"), nanosecond=ibis.literal(0, "int64"))
    columns = {"format": files.format} | histories.columns
    return Events(table, ("row",), columns, histories.errors, histories.titles)


def _events_of_table(opened: OpenTable, settings: PrepareConfig) -> Events:
    files = opened.source
    names = _column_names(files.path, opened.head.names, settings)
    title = None if settings.items else title_column(opened.head.names)
    own = {"format": files.format} | names | ({"title_col": title} if title else {})
    opened.check_sizes([*names.values(), *([title] if title else [])], settings.memory_limit)
    raw = {setting: opened.column(name) for setting, name in names.items()}
    columns, checks, times = _parse(files.path, raw, names, settings)
    quantity = _unread_quantity(opened.head.names, settings)
    if quantity:
        columns["is_return"] = _is_negative(opened.column(quantity))
    if title:
        columns["title"] = title_cells(opened.column(title), settings.null_values)
    table, errors = valid_rows(opened, columns, checks, _id_names(names), settings.id_type)
    table = with_times(opened.engine, table, times) if times else table
    if not value(table.count()):
        raise _no_events(files, errors)
    _log_recognised(files.path, names, settings)
    if quantity:
        table = _without_returns(files.path, table, quantity)
    ties = (*_TIES, "row") if settings.tie_col else ("row",)
    titles = table.select("item_id", "title", "row") if title else None
    return Events(table.drop("title") if title else table, ties, own, errors, titles)


def large_shares(events: Table) -> list[str]:
    """Return a warning for the user, and for the item, that has more than a tenth of the events.

    Among few users or items each has a large share, so the share must also be more than twice the mean.
    """
    warnings = []
    num_events = value(events.count())
    for name in ("user", "item"):
        sizes = events.group_by(id=events[f"{name}_id"]).aggregate(size=events.count())
        largest = first_row(sizes.order_by(ibis.desc("size"), "id"))
        if largest and largest["size"] > num_events * max(_LARGE_SHARE, 2 / value(sizes.count())):
            warnings.append(
                f"the {name} {printable(str(largest['id']))} has {largest['size'] / num_events:.0%} of the events "
                f"({largest['size']:,} of {num_events:,}); if it stands for no {name}, list it in prepare.null_values"
            )
    return warnings


def few_ids(num_users: float, num_items: float) -> list[str]:
    """Return a warning for a log of one user, and for one of so few items that metrics say nothing."""
    warnings = []
    if num_users == 1:
        warnings.append(
            "there is 1 user, so no metric says anything about others; is prepare.user_col the right column?"
        )
    if num_items == 1:
        warnings.append(
            "there is 1 item, so every model recommends it and every metric is 1; is prepare.item_col the right column?"
        )
    elif num_items <= _FEW_ITEMS:
        warnings.append(f"there are {num_items:,} items, so hit@k is 1 for every model from k = {num_items:,}")
    return warnings


def _no_events(files: InputFiles, errors: list[RowError]) -> DataError:
    if errors:
        return DataError(f"{files.path}: none of its {len(errors):,} rows is an event; {errors[0].message()}")
    return DataError(f"{files.path}: has columns but no rows; expected one event a row")


def _column_names(path: Path | str, names: list[str], settings: PrepareConfig) -> dict[str, str]:
    """Return the column name of each setting, for the columns that the table has."""
    keys = ["user_col", "item_col", "time_col", "rating_col"]
    keys += [key for key in ("quantity_col", "tie_col") if getattr(settings, key)]
    needs_time = settings.order == "time"  # otherwise, a column with a name such as `date` may hold anything
    indices = {
        key: find_column(path, names, key, getattr(settings, key), needs_time or key != "time_col") for key in keys
    }
    if settings.min_rating is None:
        del indices["rating_col"]
    optional = {"time_col"} if settings.order == "file" else set()
    absent = [key for key, index in indices.items() if index is None and key not in optional]
    if absent:
        raise missing_columns(path, names, absent)
    return {key: names[index] for key, index in indices.items() if index is not None}


def _log_recognised(path: Path | str, names: dict[str, str], settings: PrepareConfig) -> None:
    if message := recognised(names, settings.model_dump()):
        _LOG.info("%s: %s", printable(str(path)), message)


def _unread_quantity(names: list[str], settings: PrepareConfig) -> str | None:
    """Return the name of a column of quantities that no setting names."""
    return None if settings.quantity_col else next((name for name in names if normal_name(name) in QUANTITIES), None)


def _is_negative(cells: Column) -> Any:
    return (cells if cells.type().is_numeric() else decimal_number(cells.cast("string"))) < 0


def _without_returns(path: Path | str, events: Table, quantity: str) -> Table:
    """Warn of negative quantities that are read as events, and drop the column that marks them."""
    if num_negative := int(value(events.is_return.sum()) or 0):
        _LOG.warning(
            "%s: the column %s is negative in %s rows, which are read as events; set prepare.quantity_col=%s if they "
            "are returns",
            *(printable(str(path)), printable(quantity), f"{num_negative:,}", printable(quantity)),
        )
    return events.drop("is_return")


def _id_names(names: dict[str, str]) -> dict[str, str]:
    return {"user_id": names["user_col"], "item_id": names["item_col"]}


def _parse(
    path: Path | str, raw: dict[str, Column], names: dict[str, str], settings: PrepareConfig
) -> tuple[dict[str, Any], list[Check], ParsedTimes | None]:
    """Return the columns of events, the checks of their values, and their times."""
    user, user_checks = id_checks(path, names["user_col"], raw["user_col"], settings.null_values)
    item, item_checks = id_checks(path, names["item_col"], raw["item_col"], settings.null_values)
    columns: dict[str, Any] = {"user_id": user, "item_id": item}
    checks = [*user_checks, *item_checks]
    times = parse_times(raw["time_col"], names["time_col"], settings) if "time_col" in names else None
    if times:
        columns |= times.columns
        reason = partial(invalid_time_reason, times=times)
        checks.append(Check(times.is_invalid, names["time_col"], raw["time_col"], reason))
    else:
        columns |= {"timestamp": ibis.literal(None, "int64"), "nanosecond": ibis.literal(0, "int64")}
    for setting in {"rating_col", "quantity_col"} & names.keys():
        number = columns[setting.removesuffix("_col")] = decimal_number(raw[setting])
        is_invalid = number.isnull() | number.isnan()
        checks.append(Check(is_invalid, names[setting], raw[setting], lambda _: "expected a number"))
    if "tie_col" in names:  # numbers first, by value even where they are text, then other text
        columns |= {"tie": raw["tie_col"].try_cast("float64"), "tie_as_is": raw["tie_col"]}
    return columns, checks, times


def _events_of_engine(engine: Any, embedded: Any, spill: Path, log: str, settings: PrepareConfig) -> Events:
    """Read a table of an engine whose rows have no order: `tie_col` or the item ids order events of the same time."""
    table = _table_of_engine(engine, log)
    if settings.order == "file" and not settings.tie_col:
        raise ConfigError(
            f"prepare.order is file, but the rows of {log} have no order in the engine {engine.name}; set "
            "prepare.tie_col to the column that numbers them"
        )
    if settings.time_format is not None and not is_row_store(engine):
        raise ConfigError(
            f"prepare.time_format is {settings.time_format!r}, but the engine {engine.name} reads typed times and "
            "dates such as 2014-07-23 10:00; convert the column there, or use duckdb"
        )
    names = _column_names(log, list(table.columns), settings)
    columns_of = {"format": f"{engine.name} table"} | names
    if is_row_store(engine):
        read = names | {name: name for name in table.columns if normal_name(name) in QUANTITIES}
        table, engine = copied(engine, table, read, embedded, spill, log), embedded
    columns, checks, times = _parse(log, {setting: table[name] for setting, name in names.items()}, names, settings)
    quantity = _unread_quantity(list(table.columns), settings)
    if quantity:
        columns["is_return"] = _is_negative(table[quantity])
    stored = keep(engine, table.select(**columns, **check_columns(checks)))
    invalid = stored.filter(stored.fault.notnull()).select("fault", "value")
    rows = (invalid if settings.on_bad_row == "skip" else invalid.limit(1)).to_pyarrow().to_pylist()
    errors = [row_error(Path(log), 0, checks[row["fault"]], row["value"], "row") for row in rows]
    valid = stored.filter(stored.fault.isnull()).drop("fault", "value")
    valid = with_times(engine, valid, times) if times else valid
    if not value(valid.count()):
        raise DataError(f"{log}: has no rows; expected one event a row")
    ties = (*_TIES, "item_id") if settings.tie_col else ("item_id",)
    check_skippable(errors, settings.on_bad_row)
    if quantity:
        valid = _without_returns(log, valid, quantity)
    _log_recognised(log, names, settings)
    converted = convert_ids(valid, _id_names(names), settings.id_type)
    if isinstance(converted, Check):
        refused = first_row(valid.filter(converted.condition).select(value=converted.value.cast("string")))
        raise DataError(row_error(Path(log), 0, converted, refused["value"], "row").message())
    return Events(converted, ties, columns_of, errors)


def _table_of_engine(engine: Any, log: str) -> Table:
    path = Path(log)
    if path.is_file() and path.suffix not in _PARQUET_SUFFIXES:
        raise ConfigError(
            f"{log}: the engine {engine.name} reads Parquet and its own tables; leave prepare.engine out, or write "
            "the log as Parquet"
        )
    *database, name = log.split(".")
    try:
        if path.suffix in _PARQUET_SUFFIXES or path.is_dir() or "://" in log:
            return engine.read_parquet(log)
        return engine.table(name, database=tuple(database) or None)
    except Exception as error:  # database drivers have no common base class of errors
        raise DataError(
            f"{log}: the engine {engine.name} has no such table and cannot read such a file ({one_line(error, 200)}); "
            "give Parquet, or the name of a table"
        ) from None
