"""Tables of items with titles and other columns."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import first_row, value
from slmrec.data.logs.checks import id_checks, title_cells
from slmrec.data.logs.columns import ALL_USUAL_NAMES, find_column, missing_columns
from slmrec.data.logs.files import inspect
from slmrec.data.logs.row_errors import RowError
from slmrec.data.logs.tables import OpenTable, valid_rows, with_table
from slmrec.errors import DataError
from slmrec.files import printable

_MIN_AGREEMENT = 0.9
"""Share of the events of repeated items that must have the title of their item, so that titles of a log are read."""
_MIN_DISTINCT = 0.5
"""Number of distinct titles, in relation to that of titled items, that titles of a log must have."""


class ItemRows(NamedTuple):
    """The rows of a table of items."""

    rows: Table
    """`text` (the id), `row`, optionally `title`, and the other columns that are kept, as `column_name` names them."""
    errors: list[RowError]
    """The invalid rows, which the table does not contain."""
    kept: Mapping[str, str] = MappingProxyType({})
    """The name in the table of each column that is kept: `item_id`, `title`, and those of `item_columns`."""
    left_out: tuple[str, ...] = ()
    """The other columns of the table."""

    def message(self) -> str:
        """Return which columns are kept, and which are not."""
        kept = ", ".join(new if new == name else f"{new} ({printable(name)})" for new, name in self.kept.items())
        if not self.left_out:
            return f"columns of items kept: {kept}"
        others = ", ".join(map(printable, self.left_out))
        return f"columns of items kept: {kept}; not kept: {others} (prepare.item_columns keeps more)"


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
    names = {name for name in (settings.items_id_col, settings.title_col, *settings.item_columns) if name}
    files = inspect(path, "auto", ALL_USUAL_NAMES | names, settings.encoding)
    if files.format in {"sequences", "reference"}:
        raise DataError(f"{path}: is not a table of items; expected .csv, .tsv, .dat, .parquet or .jsonl")
    return with_table(engine, spill, files, None, settings.on_bad_row, lambda table: _item_rows(table, path, settings))


def titles_of_log(titles: Table) -> ItemRows | None:
    """Return the titles of a log as a table of items, or None if they are not those of its items.

    A column such as `title` may hold the title of a review, and `name` that of a customer. The titles are those of the
    items if events of one item agree in them, and different items have different titles.

    Args:
        titles: `item_id`, `title` and `row` of each event.
    """
    rows = titles.mutate(text=titles.item_id.cast("string")).drop("item_id")
    titled = rows.filter(rows.title.notnull())
    pairs = titled.group_by("text", "title").aggregate(num=titled.count())
    items = pairs.group_by("text").aggregate(num=pairs.num.sum(), most=pairs.num.max())
    repeated = items.filter(items.num > 1)
    counts = first_row(repeated.aggregate(num=repeated.num.sum(), most=repeated.most.sum()))
    num_items, num_titles = value(items.count()), value(pairs.title.nunique())
    if not counts["num"] or counts["most"] < _MIN_AGREEMENT * counts["num"] or num_titles < _MIN_DISTINCT * num_items:
        return None
    return ItemRows(rows, [])


def _item_rows(opened: OpenTable, path: Path, settings: PrepareConfig) -> ItemRows:
    names = opened.names()
    name_in_log = settings.item_col if settings.item_col in names else None
    id_index = find_column(path, names, "items_id_col", settings.items_id_col or name_in_log)
    title_index = find_column(path, names, "title_col", settings.title_col)
    if id_index is None:
        raise missing_columns(path, names, ["items_id_col"])
    id_name = names[id_index]
    ids, checks = id_checks(path, id_name, opened.column(id_name), settings.null_values)
    kept = {"item_id": id_name}
    columns = {"text": ids}
    if title_index is not None:
        kept["title"] = names[title_index]
        columns["title"] = title_cells(opened.column(kept["title"]), settings.null_values)
    for number, name in enumerate(settings.item_columns):
        index = find_column(path, names, "item_columns", name)
        assert index is not None
        kept[name] = names[index]
        columns[column_name(number)] = opened.column(kept[name])
    opened.check_sizes(kept.values(), settings.memory_limit)
    # Text is read as ids of the log's type later; other columns are whole numbers, or refused.
    id_type = "text" if ids.type().is_string() else settings.id_type
    rows, errors = valid_rows(opened, columns, checks, {"text": id_name}, id_type)
    left_out = tuple(name for name in names if name not in kept.values())
    return ItemRows(rows.mutate(text=rows.text.cast("string")), errors, kept, left_out)


def column_name(number: int) -> str:
    """Return the name, while tables are computed, of a column of `item_columns`; it differs from all our own names."""
    return f"kept_column_{number}"


def one_row_per_item(rows: Table, catalogue: Table) -> Table:
    """Return one row per item of a catalogue, and `num_titles`, the number of its distinct titles.

    Each column has the item's most frequent value that is not null; the first of equally frequent ones.

    Args:
        rows: a table of items, as in `ItemRows`.
        catalogue: the ids of the items as text, in the column `text`.
    """
    known = rows.semi_join(catalogue, "text")
    table = known.select("text").distinct()
    for name in [name for name in rows.columns if name not in ("text", "row")]:
        values = known.filter(known[name].notnull()).group_by("text", value=known[name])
        values = values.aggregate(num=lambda group: group.count(), first=lambda group: group.row.min())
        order = [ibis.desc(values.num), values["first"]]
        ranked = values.mutate(
            rank=ibis.row_number().over(group_by="text", order_by=order),
            num_values=values.num.count().over(group_by="text"),
        )
        best = ranked.filter(ranked["rank"] == 0)
        number = {"num_titles": best.num_values} if name == "title" else {}
        best = best.select("text", **{name: best.value}, **number)
        table = table.left_join(best, "text").drop("text_right")
    titles = table.num_titles.fill_null(0) if "title" in rows.columns else ibis.literal(0)
    return table.mutate(num_titles=titles)
