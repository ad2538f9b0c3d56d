"""Histories of users from tables with one row per user or one row per event."""

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
"""Pattern of an item id in a history written as text."""
ITEM_IDS_WITH_COMMAS = r"\S+"
_TIME_TYPES = (pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))


class Sequences(NamedTuple):
    """Users and their histories of item ids, oldest first."""

    users: list[Any]
    histories: Sequence[Sequence[Any]]


def is_table(data: object) -> bool:
    """Return whether an object is an Arrow, pandas or polars table."""
    return hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns")


def sequences_of(data: Any, id_pattern: str = ITEM_IDS, where: str = "histories") -> Sequences:
    """Return the histories of a table with the columns `user_id, history`, or `user_id, item_id, timestamp`.

    Args:
        data: Arrow, pandas or polars table.
        id_pattern: Pattern of an item id in a history that is text instead of a list.
        where: Name of the table in error messages.

    Raises:
        DataError: The table has other columns, or a timestamp or a history cannot be read.

    Example:
        >>> sequences_of(pa.table({"user_id": ["u"], "history": [["a", "b"]]})).histories
        [['a', 'b']]
    """
    table = data if isinstance(data, pa.Table) else pa.table(data)
    columns = set(table.column_names)
    if {"user_id", "history"} <= columns:
        histories = [_history(value, where, id_pattern) for value in table["history"].to_pylist()]
        return Sequences(table["user_id"].to_pylist(), histories)
    if {"user_id", "item_id", "timestamp"} <= columns:
        return _grouped(table, where)
    raise DataError(
        f"{where}: columns {', '.join(table.column_names)}; expected user_id and history (one row per user), or "
        "user_id, item_id and timestamp (one row per event); rename the columns"
    )


def history_of_text(text: str, id_pattern: str, where: str) -> list[Any]:
    """Return the item ids of a history written as a JSON list, or as ids separated by spaces or commas.

    Raises:
        DataError: The text begins like a JSON list but is none.

    Example:
        >>> history_of_text("a, b", ITEM_IDS, "history")
        ['a', 'b']
    """
    try:
        return list(json.loads(text) if text.startswith("[") else re.findall(id_pattern, text))
    except json.JSONDecodeError:
        raise DataError(f'{where}: history {text!r} is no JSON list; write ["a", "b"], or a b') from None


def check_histories(histories: Any) -> None:
    """Refuse anything but a list of lists; a text would be read letter by letter.

    Raises:
        ConfigError: A history is no list.
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
    if isinstance(value, str):  # CSV files have no lists
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
    """Return timestamps as numbers or dates; text is converted."""
    missing = pc.index(pc.is_null(column, nan_is_null=True), True).as_py()
    if missing >= 0:
        raise _bad_time(where, missing, column)
    if pa.types.is_string_view(column.type) or pa.types.is_large_string(column.type):  # types of polars and pandas
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return column
    time_type = next((one for one in _TIME_TYPES if _can_cast(column[:1], one)), None)
    if time_type is None or not _can_cast(column, time_type):
        wrong = (row for row in range(len(column)) if not time_type or not _can_cast(column[row : row + 1], time_type))
        raise _bad_time(where, next(wrong), column)
    return column.cast(time_type)


def _can_cast(texts: pa.ChunkedArray, time_type: pa.DataType) -> bool:
    try:
        texts.cast(time_type)
    except pa.ArrowInvalid:
        return False
    return True


def _bad_time(where: str, row: int, column: pa.ChunkedArray) -> DataError:
    return DataError(
        f"{where}: row {row + 1}: timestamp is {column[row].as_py()!r}, expected a whole number or a date, in the same "
        "format in all rows; correct it or remove the row"
    )
