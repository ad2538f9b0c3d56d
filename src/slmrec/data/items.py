"""What is known of items: a table with their titles and whatever else it has."""

from pathlib import Path
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Table

from slmrec.data.logs.columns import KNOWN, missing, place
from slmrec.data.logs.files import inspect
from slmrec.data.logs.formats import plain_name
from slmrec.data.logs.row_errors import OnBadRow, Reject
from slmrec.data.logs.tables import Fault, Opened, good_rows, id_column, is_empty, with_table
from slmrec.errors import DataError

_OWN = {"item", "item_id", "title", "num_titles", "text", "text_right", "row", "nth", "file", "fault", "value"}
"""Columns of another meaning: those of the table get an underscore."""
_MARKUP = r"^\s*<\w+ [\w-]+=|getTime\(\)"
"""Titles that are scraped pieces of a page."""


class ItemsReading(NamedTuple):
    """Which table of items, and how it is read; the settings of `prepare`."""

    path: Path
    item_col: str | None
    """The log's column of items: the table may have one of this name."""
    items_id_col: str | None
    title_col: str | None
    on_bad_row: OnBadRow


class KnownItems(NamedTuple):
    """What is known of items, as it was read."""

    rows: Table
    """`text` (the id), `row`, perhaps `title`, and all other columns."""
    rejects: list[Reject]


def read_items(engine: Any, spill: Path, reading: ItemsReading) -> KnownItems:
    """The rows of a table of items.

    Args:
        engine: the embedded one.
        spill: a folder for temporary files.
        reading: the table.

    Raises:
        DataError: the file cannot be read, or has no such columns, or an id is missing and `on_bad_row` is `error`.
    """
    path = reading.path
    names = {name for name in (reading.items_id_col, reading.title_col) if name}
    source = inspect(path, "auto", KNOWN | names)
    if source.kind in {"sequences", "reference"}:
        raise DataError(f"{path}: is no table; expected one of items (.csv, .tsv, .dat, .parquet or .jsonl)")
    return with_table(engine, spill, source, None, reading.on_bad_row, lambda opened: _rows_of_items(opened, reading))


def _rows_of_items(opened: Opened, reading: ItemsReading) -> KnownItems:
    path = reading.path
    names = opened.names()
    as_in_log = reading.item_col if reading.item_col in names else None
    id_at = place(path, names, "items_id_col", reading.items_id_col or as_in_log)
    title_at = place(path, names, "title_col", reading.title_col)
    if id_at is None:
        raise missing(path, names, ["items_id_col"])
    columns = {"text": id_column(path, names[id_at], opened.column(names[id_at])).cast("string")}
    if title_at is not None:
        columns["title"] = opened.column(names[title_at]).cast("string").nullif("")
    others = [name for at, name in enumerate(names) if at not in (id_at, title_at)]
    columns |= {new: opened.column(name) for name, new in zip(others, _new_names(others), strict=True)}
    fault = Fault(is_empty(columns["text"]), names[id_at], columns["text"], lambda _: "expected an id")
    return KnownItems(*good_rows(opened, columns, [fault]))


def _new_names(names: list[str]) -> list[str]:
    """Names that differ from one another, whatever their case, and from those of another meaning."""
    taken, new = set(_OWN), []
    for name in names:
        free = plain_name(name) or "unnamed"
        while free.lower() in taken:
            free += "_"
        taken.add(free.lower())
        new.append(free)
    return new


def one_row_an_item(rows: Table, catalogue: Table) -> Table:
    """The rows of the items of a catalogue (`text`), the first one of each; and `num_titles`, different ones.

    Of the titles the first one counts that is there, and that is no scraped markup.
    """
    wanted = rows.semi_join(catalogue, "text")
    first = wanted.mutate(nth=ibis.row_number().over(group_by="text", order_by="row"))
    firsts = first.filter(first.nth == 0).drop("nth", "row")
    if "title" not in rows.columns:
        return firsts.mutate(num_titles=0)
    usable = wanted.filter(wanted.title.notnull() & ~wanted.title.re_search(_MARKUP))
    titles = usable.group_by("text").aggregate(
        title=usable.title.first(order_by=usable.row), num_titles=usable.title.nunique()
    )
    joined = firsts.drop("title").left_join(titles, "text").drop("text_right")
    return joined.mutate(num_titles=joined.num_titles.fill_null(0))
