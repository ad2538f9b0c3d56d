"""Logs that have one user a row: `user item item ...` a line, and the reference's table with its lists."""

from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.data.engine import keep
from slmrec.data.files import Source, list_cell, records
from slmrec.data.layouts import header, missing, place
from slmrec.data.rejects import OnBadRow, Reject, settled
from slmrec.data.tables import read_lines

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
    words = read_lines(engine, source).line.fill_null("").re_replace(r"[ \t]+", " ").strip().split(" ")
    lines = keep(engine, words.name("words").as_table())
    users = lines.select(user_id=lines.words[0], item_id=lines.words[1:], line=lines.rowid() + 1)
    last = users.filter(users.user_id != "").line.max()  # blank lines at the end do no harm
    users = users.filter(users.line <= last.as_scalar())
    users = keep(engine, users.mutate(earlier=users.line.min().over(group_by=users.user_id)))
    bare = users.item_id.length() == 0
    faulty = users.filter(bare | (users.line > users.earlier)).order_by("line")
    rejects = settled(list(_rejected_lines(source, faulty)), on_bad_row)
    good = users.filter(~bare & (users.line == users.earlier))
    return Histories(keep(engine, good.select("user_id", "item_id").unnest("item_id", offset="row")), rejects, None, {})


def _rejected_lines(source: Source, faulty: Table) -> Iterator[Reject]:
    for row in faulty.to_pyarrow().to_pylist():
        if row["item_id"]:
            reason = (
                f"the user has line {row['earlier']} already, expected one line a user (join them, or, if each is one "
                "event, set prepare.format and prepare.columns)"
            )
        else:
            reason = "no items, expected `user item item ...` (set prepare.format if the file is a table)"
        yield Reject(source.path, row["line"], "user", row["user_id"], reason)


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
            raise missing(source.path, names, setting, None)
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
    for file in source.files:
        for line, row in islice(records(source, file), 1, None):
            cells = dict(enumerate(row))
            items, user = list_cell(cells.get(item_at, "")), cells.get(user_at)
            if items is None or not user:
                at, expected = (item_at, "a list of items") if user else (user_at, "an id")
                rejects.append(Reject(file, line, names[at], cells.get(at), f"expected {expected}"))
                continue
            titles = list_cell(cells.get(title_at, "")) or []
            for item, title in zip_longest(items, titles[: len(items)]):
                yield user, str(item), None if title is None else str(title)
