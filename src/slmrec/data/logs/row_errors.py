"""Rows that are no events: where they are, what is wrong with them, and how they are told."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from slmrec.data.logs.files import Source
from slmrec.data.logs.formats import printable, shown
from slmrec.data.logs.rows import records
from slmrec.errors import DataError

OnBadRow = Literal["error", "skip"]
_TEXT = pa.string()
_SCHEMA = pa.schema([("file", _TEXT), ("line", pa.int64()), ("column", _TEXT), ("value", _TEXT), ("reason", _TEXT)])


class Reject(NamedTuple):
    """A row that is no event."""

    file: Path
    line: int
    """From 1; of Parquet, the row; 0 of an engine's table, whose rows have no order."""
    column: str | None
    """The name of the faulty column; none if it is the line as a whole."""
    value: str | None
    reason: str
    """What was expected, or why the line cannot be read; the same words for the same fault."""
    unit: str = "line"

    def what(self) -> str:
        """Where it is, and what is wrong, on one line."""
        value = shown(self.value or "") if self.column is None else f"{printable(self.column)} is {self.value!r}"
        where = f"{self.unit} {self.line}" if self.line else f"a {self.unit}"
        return f"{self.file}: {where}: {value}: {self.reason}"

    def error(self) -> DataError:
        """As the one line that ends the run."""
        return DataError(f"{self.what()}; mend it or remove the row, or set prepare.on_bad_row=skip")


def settled(rejects: Sequence[Reject], on_bad_row: OnBadRow) -> list[Reject]:
    """The rejects, if they are to be skipped.

    Raises:
        DataError: there is one, and `on_bad_row` is `error`.
    """
    if rejects and on_bad_row == "error":
        raise rejects[0].error()
    return list(rejects)


def counts(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many rows were rejected, by reason."""
    return dict(Counter(f"{reject.column}: {reject.reason}" if reject.column else reject.reason for reject in rejects))


def table(rejects: Sequence[Reject]) -> pa.Table:
    """`file, line, column, value, reason`."""
    rows = [reject._asdict() | {"file": str(reject.file)} for reject in rejects]
    return pa.Table.from_pylist([{name: row[name] for name in _SCHEMA.names} for row in rows], _SCHEMA)


def line_numbers(
    source: Source, file: Path, rows: Collection[int], has_header: bool, left_out: Collection[int]
) -> dict[int, int]:
    """The lines of some rows of a table that is text.

    Args:
        source: the table.
        file: one of its files.
        rows: counted from 0 among the rows that the engine read.
        has_header: whether the first line is no row.
        left_out: first lines of the rows that the engine did not read.
    """
    wanted, found, row = set(rows), {}, -has_header
    for record in records(source, file):
        if record.line in left_out or not record.cells:
            continue
        if row in wanted:
            found[row] = record.line
        if len(found) == len(wanted):
            break
        row += 1
    return found
