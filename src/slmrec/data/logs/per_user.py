"""Logs that have one user a row: `user item item ...` a line, and the reference's table with its lists."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.data.engine import keep
from slmrec.data.logs.columns import header, missing, place
from slmrec.data.logs.files import Source
from slmrec.data.logs.literals import list_cell
from slmrec.data.logs.row_errors import OnBadRow, Reject, settled
from slmrec.data.logs.rows import records
from slmrec.data.logs.tables import file_of, first_rows, read_lines

_ROWS_AT_ONCE = 10_000
_SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("title", pa.string())])


class Histories(NamedTuple):
    """Users' items in order, one event a row: `user_id`, `item_id`, `row` (which orders a user's events)."""

    events: Table
    rejects: list[Reject]
    titles: Table | None
    """`item_id`, `title`, `row`, if the log has titles."""
    layout: dict[str, str]
    """The name of the column of each setting."""


def read_lines_of_users(engine: Any, source: Source, on_bad_row: OnBadRow) -> Histories:
    """Of `user item item ...` a line; `row` is the place in the line.

    Raises:
        DataError: a user has no items or another line already, and `on_bad_row` is `error`.
    """
    lines = read_lines(engine, source)
    words = lines.line.fill_null("").re_replace(r"[ \t]+", " ").strip().split(" ")
    kept = keep(engine, lines.select(words=words, file=file_of(lines)))
    users = kept.select("file", user_id=kept.words[0], item_id=kept.words[1:], row=kept.rowid())
    firsts = first_rows(users)
    last = users.row.max(where=users.user_id != "").over(group_by=users.file)
    users = users.mutate(last=last).filter(lambda user: user.row <= user.last)  # blank lines at the end do no harm
    users = keep(engine, users.mutate(earlier=users.row.min().over(group_by=users.user_id)))
    bare = users.item_id.length() == 0
    faulty = users.filter(bare | (users.row > users.earlier)).order_by("row")
    rejects = settled([_rejected_line(source, firsts, row) for row in faulty.to_pyarrow().to_pylist()], on_bad_row)
    good = users.filter(~bare & (users.row == users.earlier))
    return Histories(keep(engine, good.select("user_id", "item_id").unnest("item_id", offset="row")), rejects, None, {})


def _rejected_line(source: Source, firsts: dict[str | None, int], row: dict[str, Any]) -> Reject:
    file, line = _place(source, firsts, row["row"])
    if row["item_id"]:
        earlier_file, earlier = _place(source, firsts, row["earlier"])
        where = f"line {earlier}" if earlier_file == file else f"line {earlier} of {earlier_file.name}"
        reason = (
            f"the user has {where} already, expected one line a user (join them, or, if each is one event, set "
            "prepare.format and prepare.columns)"
        )
    else:
        reason = "no items, expected `user item item ...` (set prepare.format if the file is a table)"
    return Reject(file, line, "user", row["user_id"], reason)


def _place(source: Source, firsts: dict[str | None, int], row: int) -> tuple[Path, int]:
    """The file and the line of a row."""
    starts = sorted(firsts.values())
    at = bisect_right(starts, row) - 1
    keys = {str(file): name for file, name in zip(source.files, source.names, strict=True)}
    file = next(file for file, first in firsts.items() if first == starts[at])
    return keys.get(file or "", source.path), row - starts[at] + 1


def read_lists(
    engine: Any, spill: Path, source: Source, columns: dict[str, str | None], on_bad_row: OnBadRow
) -> Histories:
    """Of the reference's processed table: a row a user, with a list of items and perhaps one of titles.

    Args:
        engine: the embedded one.
        spill: a folder for temporary files.
        source: the table.
        columns: by setting (`user_col`, `item_col`, `title_col`) the name of the column, or none for the usual one.
        on_bad_row: what to do with a row whose items are no list.

    Raises:
        DataError: a column is missing, or a row is no good and `on_bad_row` is `error`.
    """
    names = header(source, None).names
    places = {setting: place(source.path, names, setting, column) for setting, column in columns.items()}
    for setting in ("user_col", "item_col"):
        if places[setting] is None:
            raise missing(source.path, names, [setting])
    path = spill / "lists.parquet"
    rejects: list[Reject] = []
    rows = _rows_of_lists(source, names, places, rejects)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.table(list(zip(*part, strict=True)), schema=_SCHEMA))
    stored = keep(engine, engine.read_parquet(str(path)))
    events = stored.select("user_id", "item_id", row=stored.rowid())
    titles = stored.select("item_id", "title", row=stored.rowid()) if places["title_col"] is not None else None
    layout = {name: names[at] for name, at in places.items() if at is not None}
    return Histories(events, settled(rejects, on_bad_row), titles, layout)


def _rows_of_lists(
    source: Source, names: list[str], places: dict[str, int | None], rejects: list[Reject]
) -> Iterator[tuple[str, str, str | None]]:
    user_at, item_at, title_at = (-1 if at is None else at for at in places.values())
    for file in source.names:
        for record in islice(records(source, file), 1, None):
            if record.fault:
                rejects.append(Reject(file, record.line, None, record.text, record.fault))
            if not record.cells:
                continue
            line, cells = record.line, dict(enumerate(record.cells))
            items, user = list_cell(cells.get(item_at, "")), cells.get(user_at)
            if items is None or not user:
                at, expected = (item_at, "a list of items") if user else (user_at, "an id")
                rejects.append(Reject(file, line, names[at], cells.get(at), f"expected {expected}"))
                continue
            titles = list_cell(cells.get(title_at, "")) or []
            for item, title in zip_longest(items, titles[: len(items)]):
                yield user, str(item), None if title is None else str(title)
