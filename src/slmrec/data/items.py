"""Tables of items with titles and other columns."""

from pathlib import Path
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.logs.checks import id_checks
from slmrec.data.logs.columns import ALL_USUAL_NAMES, find_column, missing_columns
from slmrec.data.logs.files import inspect
from slmrec.data.logs.formats import plain_name
from slmrec.data.logs.row_errors import RowError
from slmrec.data.logs.tables import OpenTable, valid_rows, with_table
from slmrec.errors import DataError

_RESERVED = {"item", "item_id", "title", "num_titles", "text", "text_right", "row", "nth", "file", "fault", "value"}
"""Column names with a meaning of our own; columns of the table with such a name get an underscore."""
_MARKUP = r"^\s*<\w+ [\w-]+=|getTime\(\)"
"""Titles that are scraped pieces of a web page."""


class ItemRows(NamedTuple):
    """The rows of a table of items."""

    rows: Table
    """`text` (the id), `row`, optionally `title`, and all other columns."""
    errors: list[RowError]
    """The invalid rows, which the table does not contain."""


def read_items(engine: Any, spill: Path, path: Path, settings: PrepareConfig) -> ItemRows:
    """Read a table of items.

    Args:
        engine: the embedded engine.
        spill: a folder for temporary files.
        path: the table.
        settings: the columns, and how to treat invalid rows; a column with the name of the log's column of items holds
            the ids, unless `items_id_col` is set.

    Raises:
        DataError: the file cannot be read or lacks a column, or an id is missing and `on_bad_row` is `error`.
    """
    names = {name for name in (settings.items_id_col, settings.title_col) if name}
    files = inspect(path, "auto", ALL_USUAL_NAMES | names, settings.encoding)
    if files.format in {"sequences", "reference"}:
        raise DataError(f"{path}: is not a table of items; expected .csv, .tsv, .dat, .parquet or .jsonl")
    return with_table(engine, spill, files, None, settings.on_bad_row, lambda table: _item_rows(table, path, settings))


def _item_rows(opened: OpenTable, path: Path, settings: PrepareConfig) -> ItemRows:
    names = opened.names()
    name_in_log = settings.item_col if settings.item_col in names else None
    id_index = find_column(path, names, "items_id_col", settings.items_id_col or name_in_log)
    title_index = find_column(path, names, "title_col", settings.title_col)
    if id_index is None:
        raise missing_columns(path, names, ["items_id_col"])
    id_name = names[id_index]
    ids, checks = id_checks(path, id_name, opened.column(id_name), settings.null_values)
    columns = {"text": ids}
    if title_index is not None:
        columns["title"] = opened.column(names[title_index]).cast("string").nullif("")
    rest = [name for index, name in enumerate(names) if index not in (id_index, title_index)]
    columns |= {new: opened.column(name) for name, new in zip(rest, _unique_names(rest), strict=True)}
    # Text is read as ids of the log's type later; other columns are whole numbers, or refused.
    id_type = "text" if ids.type().is_string() else settings.id_type
    rows, errors = valid_rows(opened, columns, checks, {"text": id_name}, id_type)
    return ItemRows(rows.mutate(text=rows.text.cast("string")), errors)


def _unique_names(names: list[str]) -> list[str]:
    """Append underscores until the names differ from each other and from reserved names, ignoring case."""
    taken, unique = set(_RESERVED), []
    for name in names:
        candidate = plain_name(name) or "unnamed"
        while candidate.lower() in taken:
            candidate += "_"
        taken.add(candidate.lower())
        unique.append(candidate)
    return unique


def one_row_per_item(rows: Table, catalogue: Table) -> Table:
    """Return the first row of each item of a catalogue, and `num_titles`, the number of its distinct titles.

    The title of an item is its first one that is not empty and not scraped markup.

    Args:
        rows: a table of items, as in `ItemRows`.
        catalogue: the ids of the items as text, in the column `text`.
    """
    known = rows.semi_join(catalogue, "text")
    numbered = known.mutate(nth=ibis.row_number().over(group_by="text", order_by="row"))
    firsts = numbered.filter(numbered.nth == 0).drop("nth", "row")
    if "title" not in rows.columns:
        return firsts.mutate(num_titles=0)
    usable = known.filter(known.title.notnull() & ~known.title.re_search(_MARKUP))
    titles = usable.group_by("text").aggregate(
        title=usable.title.first(order_by=usable.row), num_titles=usable.title.nunique()
    )
    joined = firsts.drop("title").left_join(titles, "text").drop("text_right")
    return joined.mutate(num_titles=joined.num_titles.fill_null(0))
