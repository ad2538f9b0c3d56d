"""Logs with one user per row: `user item item ...` per line, and the reference's table with lists."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import first_row, keep
from slmrec.data.ids import ONE_ROW_PER_ITEM, is_missing, is_missing_id, missing_reason, refusal, stripped
from slmrec.data.logs.checks import Check, convert_ids
from slmrec.data.logs.columns import find_column, header, missing_columns
from slmrec.data.logs.files import InputFiles
from slmrec.data.logs.literals import list_cell
from slmrec.data.logs.row_errors import RowError, check_skippable
from slmrec.data.logs.rows import read_rows
from slmrec.data.logs.tables import file_column, first_rows, read_lines
from slmrec.errors import DataError

_ROWS_PER_PART = 10_000
_SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("title", pa.string())])


class UserHistories(NamedTuple):
    """The histories of a log with one user per row, as a table of events."""

    events: Table
    """`user_id`, `item_id`, and `row`, which orders the events of a user."""
    errors: list[RowError]
    titles: Table | None
    """`item_id`, `title` and `row`, if the log has titles."""
    columns: dict[str, str]
    """The column name of each setting."""


def read_sequences(engine: Any, files: InputFiles, settings: PrepareConfig) -> UserHistories:
    """Read a log with `user item item ...` per line; `row` is the position in the line.

    Raises:
        DataError: a user has no items or occurs in an earlier line, or an id is missing, and `on_bad_row` is `error`;
            or the ids are fractions.
    """
    lines = read_lines(engine, files)
    words = lines.line.fill_null("").re_replace(r"[ \t]+", " ").strip().split(" ")
    kept = keep(engine, lines.select(words=words, file=file_column(lines)))
    users = kept.select("file", user_id=kept.words[0], item_id=kept.words[1:], row=kept.rowid())
    firsts = first_rows(users)
    last = users.row.max(where=users.user_id != "").over(group_by=users.file)
    users = users.mutate(last=last).filter(lambda user: user.row <= user.last)  # ignores blank lines at the end
    users = keep(engine, users.mutate(earlier=users.row.min().over(group_by=users.user_id)))
    users = users.mutate(is_missing=is_missing_id(users.user_id, settings.null_values))
    is_fault = users.is_missing | (users.item_id.length() == 0) | (users.row > users.earlier)
    valid = users.filter(~is_fault).select("user_id", "item_id", line=users.row)
    events = keep(engine, valid.unnest("item_id", offset="row"))
    missing = events.filter(is_missing_id(events.item_id, settings.null_values))
    missing = keep(engine, missing.group_by("line").aggregate(word=missing.item_id.first(order_by=missing.row)))
    invalid = users.filter(is_fault).outer_join(missing, users.row == missing.line).to_pyarrow().to_pylist()
    errors = [_line_error(files, firsts, row) for row in invalid]
    errors.sort(key=lambda error: (error.file, error.line))
    check_skippable(errors, settings.on_bad_row)
    if any(row["word"] is not None for row in invalid):
        events = events.anti_join(missing, "line")
    return UserHistories(_with_ids(files, events.drop("line"), settings), errors, None, {})


def _with_ids(files: InputFiles, events: Table, settings: PrepareConfig) -> Table:
    converted = convert_ids(events, {"user_id": "user", "item_id": "item"}, settings.id_type)
    if isinstance(converted, Check):
        refused = first_row(events.filter(converted.condition).select(value=converted.value))["value"]
        raise DataError(f"{files.path}: {converted.column} {refused!r} is {refusal(refused)}")
    return converted


def _line_error(files: InputFiles, firsts: dict[str | None, int], row: dict[str, Any]) -> RowError:
    if row["word"] is not None:
        file, line = _file_and_line(files, firsts, row["line"])
        return RowError(file, line, "item", row["word"], missing_reason(row["word"]))
    file, line = _file_and_line(files, firsts, row["row"])
    if row["item_id"] and row["is_missing"]:
        return RowError(file, line, "user", row["user_id"], missing_reason(row["user_id"]))
    if row["item_id"]:
        earlier_file, earlier = _file_and_line(files, firsts, row["earlier"])
        where = f"line {earlier}" if earlier_file == file else f"line {earlier} of {earlier_file.name}"
        reason = (
            f"the user already has {where}, expected one line per user (join the lines, or, if each is one event, set "
            "prepare.format and prepare.columns)"
        )
    else:
        reason = "no items, expected `user item item ...` (set prepare.format if the file is a table)"
    return RowError(file, line, "user", row["user_id"], reason)


def _file_and_line(files: InputFiles, firsts: dict[str | None, int], row: int) -> tuple[Path, int]:
    starts = sorted(firsts.values())
    index = bisect_right(starts, row) - 1
    names = {str(file): name for file, name in zip(files.files, files.names, strict=True)}
    file = next(file for file, first in firsts.items() if first == starts[index])
    return names.get(file or "", files.path), row - starts[index] + 1


def read_lists(
    engine: Any, spill: Path, files: InputFiles, columns: dict[str, str | None], settings: PrepareConfig
) -> UserHistories:
    """Read the reference's processed table: one user per row, with a list of items and optionally one of titles.

    Args:
        engine: the embedded engine.
        spill: a folder for temporary files.
        files: the table.
        columns: the column name of each setting (`user_col`, `item_col`, `title_col`), or None for the usual names.
        settings: how to read ids, and how to treat a row whose items are not a list.

    Raises:
        DataError: a column is missing, a row is invalid and `on_bad_row` is `error`, or the ids are fractions.
    """
    names = header(files, None).names
    indices = {setting: find_column(files.path, names, setting, column) for setting, column in columns.items()}
    for setting in ("user_col", "item_col"):
        if indices[setting] is None:
            raise missing_columns(files.path, names, [setting])
    path = spill / "lists.parquet"
    errors: list[RowError] = []
    rows = _event_rows(files, names, indices, settings.null_values, errors)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        while part := list(islice(rows, _ROWS_PER_PART)):
            writer.write_table(pa.table(list(zip(*part, strict=True)), schema=_SCHEMA))
    check_skippable(errors, settings.on_bad_row)
    stored = keep(engine, engine.read_parquet(str(path)))
    events = _with_ids(files, stored.select("user_id", "item_id", row=stored.rowid()), settings)
    has_titles = indices["title_col"] is not None
    titles = stored.select("item_id", "title", row=stored.rowid()) if has_titles else None
    return UserHistories(
        events, errors, titles, {name: names[index] for name, index in indices.items() if index is not None}
    )


def _event_rows(
    files: InputFiles,
    names: list[str],
    indices: dict[str, int | None],
    null_values: Sequence[str],
    errors: list[RowError],
) -> Iterator[tuple[str, str, str | None]]:
    user_index, item_index, title_index = (-1 if index is None else index for index in indices.values())
    for file in files.names:
        for row in islice(read_rows(files, file), 1, None):
            if row.error:
                errors.append(RowError(file, row.line, None, row.text, row.error))
            if not row.cells:
                continue
            cells = dict(enumerate(row.cells))
            items, user = list_cell(cells.get(item_index, "")), cells.get(user_index)
            reason = _list_error(user, items, null_values)
            if reason:
                index = user_index if is_missing(user, null_values) else item_index
                errors.append(RowError(file, row.line, names[index], cells.get(index), reason))
                continue
            assert items is not None and user is not None
            titles = list_cell(cells.get(title_index, "")) or []
            for item, title in zip_longest(items, titles[: len(items)]):
                yield stripped(user), stripped(str(item)), None if title is None else str(title)


def _list_error(user: str | None, items: list[Any] | None, null_values: Sequence[str]) -> str | None:
    if is_missing(user, null_values):
        return missing_reason(user)
    if items is None:
        return "expected a list of items"
    if any(is_missing(item, null_values) for item in items):
        return "an item of the list is missing, expected an id"
    return ONE_ROW_PER_ITEM if any(isinstance(item, list | dict | tuple | set) for item in items) else None
