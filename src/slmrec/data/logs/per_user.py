"""Logs with one user per row: `user item item ...` per line, and the reference's table with lists."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.config.prepare import OnBadRow
from slmrec.data.engine import keep
from slmrec.data.logs.columns import find_column, header, missing_columns
from slmrec.data.logs.files import InputFiles
from slmrec.data.logs.literals import list_cell
from slmrec.data.logs.row_errors import RowError, check_skippable
from slmrec.data.logs.rows import read_rows
from slmrec.data.logs.tables import file_column, first_rows, read_lines

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


def read_sequences(engine: Any, files: InputFiles, on_bad_row: OnBadRow) -> UserHistories:
    """Read a log with `user item item ...` per line; `row` is the position in the line.

    Raises:
        DataError: a user has no items or occurs in an earlier line, and `on_bad_row` is `error`.
    """
    lines = read_lines(engine, files)
    words = lines.line.fill_null("").re_replace(r"[ \t]+", " ").strip().split(" ")
    kept = keep(engine, lines.select(words=words, file=file_column(lines)))
    users = kept.select("file", user_id=kept.words[0], item_id=kept.words[1:], row=kept.rowid())
    firsts = first_rows(users)
    last = users.row.max(where=users.user_id != "").over(group_by=users.file)
    users = users.mutate(last=last).filter(lambda user: user.row <= user.last)  # ignores blank lines at the end
    users = keep(engine, users.mutate(earlier=users.row.min().over(group_by=users.user_id)))
    has_no_items = users.item_id.length() == 0
    invalid = users.filter(has_no_items | (users.row > users.earlier)).order_by("row")
    errors = [_line_error(files, firsts, row) for row in invalid.to_pyarrow().to_pylist()]
    check_skippable(errors, on_bad_row)
    valid = users.filter(~has_no_items & (users.row == users.earlier))
    events = keep(engine, valid.select("user_id", "item_id").unnest("item_id", offset="row"))
    return UserHistories(events, errors, None, {})


def _line_error(files: InputFiles, firsts: dict[str | None, int], row: dict[str, Any]) -> RowError:
    file, line = _file_and_line(files, firsts, row["row"])
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
    engine: Any, spill: Path, files: InputFiles, columns: dict[str, str | None], on_bad_row: OnBadRow
) -> UserHistories:
    """Read the reference's processed table: one user per row, with a list of items and optionally one of titles.

    Args:
        engine: the embedded engine.
        spill: a folder for temporary files.
        files: the table.
        columns: the column name of each setting (`user_col`, `item_col`, `title_col`), or None for the usual names.
        on_bad_row: how to treat a row whose items are not a list.

    Raises:
        DataError: a column is missing, or a row is invalid and `on_bad_row` is `error`.
    """
    names = header(files, None).names
    indices = {setting: find_column(files.path, names, setting, column) for setting, column in columns.items()}
    for setting in ("user_col", "item_col"):
        if indices[setting] is None:
            raise missing_columns(files.path, names, [setting])
    path = spill / "lists.parquet"
    errors: list[RowError] = []
    rows = _event_rows(files, names, indices, errors)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        while part := list(islice(rows, _ROWS_PER_PART)):
            writer.write_table(pa.table(list(zip(*part, strict=True)), schema=_SCHEMA))
    check_skippable(errors, on_bad_row)
    stored = keep(engine, engine.read_parquet(str(path)))
    events = stored.select("user_id", "item_id", row=stored.rowid())
    has_titles = indices["title_col"] is not None
    titles = stored.select("item_id", "title", row=stored.rowid()) if has_titles else None
    return UserHistories(
        events, errors, titles, {name: names[index] for name, index in indices.items() if index is not None}
    )


def _event_rows(
    files: InputFiles, names: list[str], indices: dict[str, int | None], errors: list[RowError]
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
            if items is None or not user:
                index, expected = (item_index, "a list of items") if user else (user_index, "an id")
                errors.append(RowError(file, row.line, names[index], cells.get(index), f"expected {expected}"))
                continue
            titles = list_cell(cells.get(title_index, "")) or []
            for item, title in zip_longest(items, titles[: len(items)]):
                yield user, str(item), None if title is None else str(title)
