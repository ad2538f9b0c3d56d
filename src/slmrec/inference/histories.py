"""Histories of users out of tables, of one row a user or of one row an event."""

import json
import re
from collections.abc import Sequence
from reprlib import repr as shortened
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from slmrec.errors import ConfigError, DataError

COLUMNS = ("user_id", "history", "item_id", "timestamp")
ITEM_IDS = r"[^\s,]+"
"""What an item id looks like in a history that is written as text."""
ITEM_IDS_WITH_COMMAS = r"\S+"
_TIME_TYPES = (pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))


class Sequences(NamedTuple):
    """Histories of item ids, oldest first, and whose they are."""

    users: list[Any]
    histories: Sequence[Sequence[Any]]


def is_table(data: object) -> bool:
    """Whether something is an Arrow, pandas or polars table."""
    return hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns")


def sequences_of(data: Any, id_pattern: str = ITEM_IDS, where: str = "histories") -> Sequences:
    """The histories of a table with the columns `user_id, history`, or `user_id, item_id, timestamp`.

    Args:
        data: anything that `pyarrow.table` takes: an Arrow, pandas or polars table.
        id_pattern: what an item id looks like where a history is text and no list.
        where: what errors call the table.

    Raises:
        DataError: it has neither these columns nor those, or a time or a history that cannot be read.
    """
    table = data if isinstance(data, pa.Table) else pa.table(data)
    columns = set(table.column_names)
    if {"user_id", "history"} <= columns:
        histories = [_history(value, where, id_pattern) for value in table["history"].to_pylist()]
        return Sequences(table["user_id"].to_pylist(), histories)
    if {"user_id", "item_id", "timestamp"} <= columns:
        return _grouped(table, where)
    raise DataError(
        f"{where}: columns {', '.join(table.column_names)}; expected user_id and history (a row a user), or user_id, "
        "item_id and timestamp (a row an event); rename the columns"
    )


def history_of_text(text: str, id_pattern: str, where: str) -> list[Any]:
    """The item ids of a history that is written as a JSON list, or as ids between spaces or commas.

    Raises:
        DataError: it begins as a JSON list and is none.
    """
    try:
        return list(json.loads(text) if text.startswith("[") else re.findall(id_pattern, text))
    except json.JSONDecodeError:
        raise DataError(f'{where}: history {text!r} is no JSON list; write ["a", "b"], or a b') from None


def check_histories(histories: Any) -> None:
    """Refuses what is no list of lists, which would be read letter by letter.

    Raises:
        ConfigError: a history is no list.
    """
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise ConfigError(f"history {number} is {history!r}, expected a list of item ids; give [{history!r}]")
        if not hasattr(history, "__len__"):
            given = shortened(histories)
            raise ConfigError(f"histories is {given}, expected a list of histories; give [{given}]")


def _history(value: Any, where: str, id_pattern: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, str):  # a csv has no lists
        return history_of_text(value, id_pattern, where)
    return [] if value is None else [value]


def _grouped(table: pa.Table, where: str) -> Sequences:
    keys = pa.table({"time": _times(table["timestamp"], where), "row": range(table.num_rows)})
    users, items = table["user_id"].to_pylist(), table["item_id"].to_pylist()
    histories: dict[Any, list[Any]] = {user: [] for user in users}
    for row in pc.sort_indices(keys, [("time", "ascending"), ("row", "ascending")]).to_pylist():
        histories[users[row]].append(items[row])
    return Sequences(list(histories), list(histories.values()))


def _times(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Numbers or dates, also those that are written as text."""
    missing = pc.index(pc.is_null(column, nan_is_null=True), True).as_py()
    if missing >= 0:
        raise _bad_time(where, missing, column)
    if pa.types.is_string_view(column.type) or pa.types.is_large_string(column.type):  # as polars and pandas have it
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return column
    kind = next((kind for kind in _TIME_TYPES if _reads(column[:1], kind)), None)
    if kind is None or not _reads(column, kind):
        wrong = (row for row in range(len(column)) if kind is None or not _reads(column[row : row + 1], kind))
        raise _bad_time(where, next(wrong), column)
    return column.cast(kind)


def _reads(texts: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _bad_time(where: str, row: int, column: pa.ChunkedArray) -> DataError:
    return DataError(
        f"{where}: row {row + 1}: timestamp is {column[row].as_py()!r}, expected a whole number or a date, in one way "
        "throughout; mend it or remove the row"
    )
