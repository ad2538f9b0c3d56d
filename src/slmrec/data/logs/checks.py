"""Checks of the rows of a table: conditions under which a row is invalid, those of ids among them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Column, Table

from slmrec.config.prepare import IdType
from slmrec.data.ids import (
    ONE_ROW_PER_ITEM,
    id_column,
    is_list,
    is_missing_id,
    is_refused,
    kind_of_ids,
    missing_reason,
    refusal,
)
from slmrec.data.logs.row_errors import RowError
from slmrec.errors import DataError
from slmrec.files import printable

_MARKUP = r"^\s*<\w+ [\w-]+=|getTime\(\)"
"""Titles that are scraped pieces of a web page."""


class Check(NamedTuple):
    """A condition under which a row is invalid."""

    condition: Any
    column: str | None
    """The name of the checked column in the file; None for the whole line."""
    value: Column
    """The value to report."""
    expected: Callable[[str | None], str] | None
    """Maps an invalid value to what was expected; None: the row is skipped without an error."""


def check_columns(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the columns `fault`, the number of the first check that applies to a row, and `value`, its value."""
    return {
        "fault": ibis.cases(*((check.condition, number) for number, check in enumerate(checks))),
        "value": ibis.cases(*((check.condition, check.value.cast("string")) for check in checks)),
    }


def row_error(file: Path, line: int, check: Check, value: str | None, unit: str) -> RowError:
    """Return the error of a row to which a check applies."""
    assert check.expected is not None
    return RowError(file, line, check.column, value, check.expected(value), unit)


def id_checks(path: Path | str, name: str, raw: Column, null_values: Sequence[str]) -> tuple[Column, list[Check]]:
    """Return a column of ids for `convert_ids`, and the checks of its values.

    Raises:
        DataError: the column has a type that holds no ids.
    """
    ids = id_column(raw)
    if isinstance(ids, str):
        raise DataError(f"{path}: column {printable(name)!r} {ids}")
    missing = Check(is_missing_id(ids, null_values), name, raw, missing_reason)
    return ids, [missing, Check(is_list(ids), name, raw, lambda _: ONE_ROW_PER_ITEM)]


def convert_ids(table: Table, ids: Mapping[str, str], id_type: IdType) -> Table | Check:
    """Return a table whose columns of ids have their type, or the check that refuses a column.

    Args:
        table: rows without missing ids.
        ids: the columns of ids, and their names in the file.
        id_type: the setting of `prepare`.
    """
    converted = {}
    for column, name in ids.items():
        kind = kind_of_ids(table[column], id_type)
        if kind.name == "refused":
            return Check(is_refused(table[column]), name, table[column], refusal)
        converted[column] = kind.convert(table[column])
    return table.mutate(**converted)


def title_cells(column: Column, null_values: Sequence[str]) -> Any:
    """Return titles without spaces around them; null for blanks, words for nothing, and scraped markup."""
    text = column.cast("string").strip()
    is_none = text.lower().isin(["", *map(str.lower, null_values)]) | text.re_search(_MARKUP)
    return ibis.ifelse(is_none, None, text)
