"""Errors of single rows: their place, value and reason, as messages and as a table."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from slmrec.config.prepare import OnBadRow
from slmrec.data.logs.files import InputFiles
from slmrec.data.logs.formats import excerpt
from slmrec.data.logs.rows import read_rows
from slmrec.errors import DataError
from slmrec.files import printable

_TEXT = pa.string()
_SCHEMA = pa.schema([("file", _TEXT), ("line", pa.int64()), ("column", _TEXT), ("value", _TEXT), ("reason", _TEXT)])


class RowError(NamedTuple):
    """An invalid row: it is not an event, or not an item."""

    file: Path
    line: int
    """The line, from 1; in Parquet, the row; 0 for tables of engines, whose rows have no order."""
    column: str | None
    """The name of the column with the invalid value; None if the whole line is invalid."""
    value: str | None
    reason: str
    """The expected value, or why the line cannot be parsed; equal errors have equal reasons."""
    unit: str = "line"

    def message(self) -> str:
        """Return the place, the value and the reason on one line."""
        value = excerpt(self.value or "") if self.column is None else f"{printable(self.column)} is {self.value!r}"
        where = f"{self.unit} {self.line}" if self.line else f"a {self.unit}"
        return f"{printable(str(self.file))}: {where}: {value}: {self.reason}"


def check_skippable(errors: Sequence[RowError], on_bad_row: OnBadRow) -> list[RowError]:
    """Return the errors if invalid rows are to be skipped.

    Raises:
        DataError: there is an error, and `on_bad_row` is `error`.
    """
    if errors and on_bad_row == "error":
        raise DataError(f"{errors[0].message()}; correct or remove the row, or set prepare.on_bad_row=skip")
    return list(errors)


def counts(errors: Iterable[RowError]) -> dict[str, int]:
    """Return the number of errors by column and reason."""
    return dict(Counter(f"{error.column}: {error.reason}" if error.column else error.reason for error in errors))


def table(errors: Sequence[RowError]) -> pa.Table:
    """Return the errors as a table with the columns `file`, `line`, `column`, `value` and `reason`."""
    rows = [error._asdict() | {"file": str(error.file)} for error in errors]
    return pa.Table.from_pylist([{name: row[name] for name in _SCHEMA.names} for row in rows], _SCHEMA)


def line_numbers(
    files: InputFiles, file: Path, rows: Collection[int], has_header: bool, skipped_lines: Collection[int]
) -> dict[int, int]:
    """Return the line numbers of some rows of a text table.

    Args:
        files: the table.
        file: one of its files.
        rows: row numbers, from 0, among the rows that the engine read.
        has_header: whether the first line is a header.
        skipped_lines: the first lines of the rows that the engine did not read.
    """
    pending, lines, number = set(rows), {}, -has_header
    for row in read_rows(files, file):
        if row.line in skipped_lines or not row.cells:
            continue
        if number in pending:
            lines[number] = row.line
        if len(lines) == len(pending):
            break
        number += 1
    return lines
