"""Files of histories and of item ids, read with the readers of `prepare`."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import batches, connected
from slmrec.data.filters import remove_returns
from slmrec.data.logs.columns import ALL_USUAL_NAMES, find_column, header
from slmrec.data.logs.files import InputFiles, as_utf8, inspect, json_keys, lines, literals_as_json, unpacked
from slmrec.data.logs.formats import DELIMITERS, format_of_name, json_error, normal_name
from slmrec.data.logs.read import read_events
from slmrec.data.logs.row_errors import RowError
from slmrec.data.logs.rows import read_rows
from slmrec.data.logs.tables import checked_size
from slmrec.data.logs.times import in_unit, stored_unit
from slmrec.data.parquet import write_any_table
from slmrec.errors import DataError
from slmrec.files import one_line, printable
from slmrec.inference.timestamps import TIMESTAMPS, needed
from slmrec.types import Unit

HISTORY, RULES, DIVERSITY = "history", "rules", "diversity"
SKIP_REMEDY = ", or set prepare.on_bad_row=skip"
_ROWS_AT_ONCE = 2**13
_BYTES_AT_ONCE = 2**26
"""Limits of what is read of a Parquet file at once."""
_EVENTS_AT_ONCE = 2**18


class UserRow(NamedTuple):
    """A user and the history as they are in the file."""

    file: Path
    line: int
    """The line of a text file or the row of a table, from 1; 0 if the history is that of several rows."""
    user: Any
    history: Any
    times: Any = None
    """Times of the items of the history; None where they are not read."""
    rules: Any = None
    """Rules of this user alone; None: none."""
    diversity: Any = None
    """Weight of diversity of this user alone; None: not given."""

    def error(self, column: str, value: Any, reason: str, unit: str) -> RowError:
        """Return the error of this row."""
        return RowError(self.file, self.line, column, None if value is None else str(value), reason, unit)


class UserRows(NamedTuple):
    """All users of a file of histories."""

    path: Path
    unit: str
    """Name of a row in messages: `line` or `row`."""
    read: Callable[[], Iterator[UserRow]]
    """Reads all rows, in the same order in every call."""
    errors: list[RowError]
    """Invalid events, which are skipped."""


@contextmanager
def open_user_rows(
    path: Path, settings: PrepareConfig, spill: Path | None = None, unit: Unit | None = None
) -> Iterator[UserRows]:
    """Open a file, or a folder of parts, with one row per user or one row per event.

    Files with one row per user are streamed. Events are sorted by the embedded engine, on disk if they are many.

    Args:
        path: The file, in any format that `prepare` reads.
        settings: How it is read: format, columns, times, invalid rows.
        spill: Folder for temporary files; None: that of the system.
        unit: Unit in which times are read; None: they are not read.

    Raises:
        DataError: The file cannot be read, or has neither `user_id` and `history` nor `user_id`, `item_id` and
            `timestamp`; or times are read, but it has none.
    """
    with TemporaryDirectory(dir=spill, prefix=".spill-") as temporary:
        folder = Path(temporary)
        source = _inspect(path, settings, folder)
        if source.format == "sequences":
            if unit is not None:
                raise DataError(f"{path}: {needed(unit, f'give a table with user_id, history and {TIMESTAMPS}')}")
            yield UserRows(path, "line", lambda: _of_lines(source), [])
            return
        names = _names(source, settings)
        index = {
            "user": find_column(path, names, "user_col", settings.user_col),
            "history": _history_column(source, names, settings),
        }
        if index["history"] is None:
            if find_column(path, names, "item_col", settings.item_col) is None or index["user"] is None:
                raise _other_columns(path, names)
            with connected("duckdb", folder, settings.memory_limit) as engine:
                events = read_events(engine, folder, str(path), settings)
                order = [*(["timestamp", "nanosecond"] if settings.order == "time" else []), *events.ties]
                table = events.table
                if settings.quantity_col:
                    table = remove_returns(engine, str(path), table, order).events
                if unit is not None:
                    if stored_unit(table) is None:
                        raise DataError(f"{path}: {needed(unit, 'add a column of times, such as timestamp')}")
                    table = in_unit(str(path), table, unit)
                columns = ["item_id", *(["timestamp"] if unit else [])]
                yield UserRows(path, "row", lambda: _of_events(engine, path, table, order, columns), events.errors)
            return
        if index["user"] is None:
            raise _other_columns(path, names)
        chosen = {key: names[number] for key, number in index.items() if number is not None}
        plain = [name.strip().casefold() for name in names]
        if unit is not None:
            if TIMESTAMPS not in plain:
                remedy = f"add the column {TIMESTAMPS}, a list as long as the history"
                raise DataError(f"{path}: {needed(unit, remedy)}")
            chosen["times"] = names[plain.index(TIMESTAMPS)]
        chosen |= {name: names[plain.index(name)] for name in (RULES, DIVERSITY) if name in plain}
        read = _readable(source, folder)
        place = "row" if source.format == "parquet" else "line"
        yield UserRows(path, place, lambda: _of_rows(read, names, chosen, settings), [])


@contextmanager
def table_user_rows(table: Any, settings: PrepareConfig, unit: Unit | None = None) -> Iterator[UserRows]:
    """Open an Arrow, pandas or polars table of histories, which is read as a Parquet file is.

    Raises:
        DataError: The object is no table, or lacks a column.
    """
    with TemporaryDirectory(prefix="slmrec-") as folder:
        path = Path(folder) / "histories.parquet"
        try:
            write_any_table(table, path)
        except ValueError as error:
            raise DataError(f"histories: cannot be read as a table ({error}); give each column one type") from None
        try:
            with open_user_rows(path, settings, unit=unit) as rows:
                yield rows
        except DataError as error:
            message = str(error).replace(str(path), "histories").removesuffix(SKIP_REMEDY)
            raise DataError(message) from None


def read_item_ids(path: Path, column: Literal["items_id_col", "user_col"] = "items_id_col") -> list[Any]:
    """Return the item ids of a file: one per line (.txt), or the column `item_id` of a table; or ids of users.

    Raises:
        DataError: It cannot be read, has no such column, or a .txt file begins with a header.
    """
    settings = PrepareConfig()
    with TemporaryDirectory(prefix="slmrec-") as folder:
        source = _inspect(path, settings, Path(folder), one_column=True)
        if source.format == "sequences":
            return _ids_of_lines(path, source, column)
        names = _names(source, settings)
        index = find_column(path, names, column, None)
        if index is None:
            expected = "user_id" if column == "user_col" else "item_id"
            raise DataError(f"{path}: columns {_shown(names)}; expected {expected}; rename the column")
        read = _readable(source, Path(folder))
        chosen = {"user": names[index], HISTORY: names[index]}
        return [row.user for row in _of_rows(read, names, chosen, settings)]


def _ids_of_lines(path: Path, source: InputFiles, column: str) -> list[str]:
    ids = [line.strip() for file in source.files for line in lines(file) if line.strip()]
    if ids and find_column(path, ids[:1], column, None) is not None:
        raise DataError(
            f"{path}: line 1 is {ids[0]!r}, a header, but .txt has one id per line; remove the line, or name "
            "the file .csv"
        )
    return ids


def _inspect(path: Path, settings: PrepareConfig, folder: Path, one_column: bool = False) -> InputFiles:
    """Detect the format as `prepare` does; .txt without a header has one user, or one item id, per line."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    named = (settings.user_col, settings.item_col, settings.time_col, *(settings.columns or ()))
    usual = ALL_USUAL_NAMES | {HISTORY} | {name for name in named if name}
    source = as_utf8(inspect(path, settings.format, usual, settings.encoding), folder)
    is_text = settings.format == "auto" and settings.columns is None and format_of_name(path) == "sequences"
    if is_text and source.format in DELIMITERS and (one_column or not _has_header(source)):
        return source._replace(format="sequences")
    return source


def _readable(source: InputFiles, folder: Path) -> InputFiles:
    """Unpack Parquet, and convert lines of Python literals to JSON lines."""
    return unpacked(source, folder) if source.format == "parquet" else literals_as_json(source, folder)


def _has_header(source: InputFiles) -> bool:
    try:
        return header(source, None).in_file
    except DataError:
        return False


def _names(source: InputFiles, settings: PrepareConfig) -> list[str]:
    if source.format == "parquet":
        with _errors_of_arrow(source.path), TemporaryDirectory(prefix="slmrec-") as folder:
            return list(pq.read_schema(unpacked(source, Path(folder)).files[0]).names)
    if source.format in {"jsonl", "literal"}:
        return json_keys(source)
    return header(source, settings.columns).names


def _history_column(source: InputFiles, names: list[str], settings: PrepareConfig) -> int | None:
    """Return the column of histories; in the reference's table, the column of items holds lists."""
    plain = [normal_name(name) for name in names]
    if HISTORY in plain:
        return plain.index(HISTORY)
    is_reference = source.format == "reference"
    return find_column(source.path, names, "item_col", settings.item_col) if is_reference else None


def _other_columns(path: Path, names: list[str]) -> DataError:
    return DataError(
        f"{path}: columns {_shown(names)}; expected user_id and history (one row per user), or user_id, item_id and "
        "timestamp (one row per event); rename the columns, or name them: prepare.user_col=NAME, "
        "prepare.item_col=NAME, prepare.time_col=NAME"
    )


def _shown(names: list[str]) -> str:
    return ", ".join(map(printable, names)) or "none"


def _of_lines(source: InputFiles) -> Iterator[UserRow]:
    for file, name in zip(source.files, source.names, strict=True):
        for number, line in enumerate(lines(file), 1):
            user, *items = re.findall(r"[^ \t\n]+", line) or [None]
            if user is not None:
                yield UserRow(name, number, user, items)


def _of_rows(
    source: InputFiles, names: list[str], chosen: dict[str, str], settings: PrepareConfig
) -> Iterator[UserRow]:
    """Yield the rows of a file; the chosen columns are those of the fields of a row, users first."""
    if source.format in {"parquet", "jsonl"}:
        is_json = source.format == "jsonl"
        yield from _of_json(source, chosen) if is_json else _of_parquet(source, chosen, settings)
        return
    has_header = header(source, settings.columns).in_file
    columns = {field: names.index(name) for field, name in chosen.items()}
    for file in source.names:
        for number, row in enumerate(read_rows(source, file)):
            if (number == 0 and has_header) or not (row.cells or row.error):
                continue
            if row.error or len(row.cells) != len(names):
                reason = row.error or f"{len(row.cells)} columns, expected {len(names)}"
                raise DataError(f"{RowError(file, row.line, None, row.text, reason).message()}; correct the line")
            yield UserRow(file, row.line, **{field: row.cells[column] for field, column in columns.items()})


def _of_json(source: InputFiles, columns: dict[str, str]) -> Iterator[UserRow]:
    for file, name in zip(source.files, source.names, strict=True):
        for number, line in enumerate(lines(file), 1):
            if error := json_error(line):
                raise DataError(f"{name}: line {number}: {error}; write one JSON object per line")
            if line.strip():
                row = json.loads(line)
                values = {field: row.get(column, ...) for field, column in columns.items()}
                yield UserRow(name, number, **values | {"user": row.get(columns["user"])})


def _of_parquet(source: InputFiles, columns: dict[str, str], settings: PrepareConfig) -> Iterator[UserRow]:
    for file, name in zip(source.files, source.names, strict=True):
        number = 0
        distinct = list(dict.fromkeys(columns.values()))
        size = checked_size(file, name, distinct, settings.memory_limit)
        with _errors_of_arrow(name), pq.ParquetFile(file) as parquet:
            num_rows = _BYTES_AT_ONCE * parquet.metadata.num_rows // max(1, size)
            for batch in parquet.iter_batches(max(1, min(_ROWS_AT_ONCE, num_rows)), columns=distinct):
                for values in zip(*(batch[column].to_pylist() for column in columns.values()), strict=True):
                    number += 1
                    yield UserRow(name, number, **dict(zip(columns, values, strict=True)))


def _of_events(engine: Any, path: Path, events: Any, order: list[str], columns: list[str]) -> Iterator[UserRow]:
    """Yield users in the order of their first row, each with all items in order, and the times if they are read."""
    firsts = events.group_by("user_id").aggregate(first_row=events.row.min())
    joined = events.join(firsts, "user_id").order_by(["first_row", *order])
    user: Any = None
    lists: list[list[Any]] = []
    newest = None
    for part in batches(engine, joined.select("first_row", "user_id", *columns), _EVENTS_AT_ONCE):
        for first_row, user_id, *values in zip(*(column.to_pylist() for column in part.columns), strict=True):
            if first_row != newest:
                if newest is not None:
                    yield UserRow(path, 0, user, *lists)
                user, lists, newest = user_id, [[] for _ in columns], first_row
            for kept, value in zip(lists, values, strict=True):
                kept.append(value)
    if newest is not None:
        yield UserRow(path, 0, user, *lists)


@contextmanager
def _errors_of_arrow(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error, 200)})") from None
