"""Files that are tables, opened in the embedded engine, and their rows that are no good."""

import glob
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
from ibis.expr.types import Column, Table

from slmrec.data.engine import explain, keep
from slmrec.data.files import DELIMITERS, Source
from slmrec.data.layouts import Header, header
from slmrec.data.rejects import OnBadRow, Reject, line_numbers, settled
from slmrec.errors import DataError

_MAX_LINE_BYTES = 2**25
_QUOTED = {"csv", "tsv"}
_FILE = "slmrec_file"


class Opened(NamedTuple):
    """A table in the engine, not yet read."""

    engine: Any
    source: Source
    head: Header
    table: Table
    on_bad_row: OnBadRow

    def column(self, name: str) -> Column:
        """Text, but for parquet, which has types."""
        if self.source.kind == "jsonl":
            return ibis.ifelse(self.table.is_object, _json_text(self.table.line, _json_path(name)), None)
        if self.source.kind == "parquet":
            return self.table[name]
        return self.table[f"column{self.head.names.index(name)}"]


class Fault(NamedTuple):
    """A way in which a row may be no good."""

    condition: Any
    column: str | None
    """Its name in the file; none for the line as a whole."""
    value: Column
    expected: Callable[[str | None], str] | None
    """What was expected, for a faulty value; none: the row is skipped without a word."""


def open_table(engine: Any, source: Source, columns: Sequence[str] | None, on_bad_row: OnBadRow) -> Opened:
    """A table whose columns have names.

    Args:
        engine: the embedded one.
        source: of any kind but one user a line or lists; parquet unpacked.
        columns: names for a file without header.
        on_bad_row: `skip` leaves out lines that are no rows.

    Raises:
        DataError: it cannot be opened, or its columns cannot be told.
    """
    if source.kind == "parquet":
        table = _open_parquet(engine, source)
        names = [name for name in table.columns if name != _FILE]
        return Opened(engine, source, Header(names, in_file=True), table, on_bad_row)
    head = header(source, columns)
    table = _open_objects(engine, source) if source.kind == "jsonl" else _open_text(engine, source, head, on_bad_row)
    return Opened(engine, source, head, table, on_bad_row)


def good_rows(opened: Opened, columns: dict[str, Any], faults: Sequence[Fault]) -> tuple[Table, list[Reject]]:
    """The rows, read and kept, with their place in the input (`row`, from 0); and those that have a fault.

    Args:
        opened: the table.
        columns: what to keep of a row.
        faults: the first one that applies counts.

    Raises:
        DataError: a row has a fault, and `on_bad_row` is `error`.
    """
    several = len(opened.source.files) > 1
    file = opened.table[_FILE] if several else ibis.literal(None, "string")
    if opened.source.kind == "jsonl":
        line = opened.table.line
        blank = Fault(is_empty(line.strip()), None, line, None)
        faults = [blank, Fault(~opened.table.is_object, None, line, lambda _: "not a JSON object"), *faults]
    marked = opened.table.select(**columns, file=file, **faults_of(faults))
    stored = keep(opened.engine, marked)
    rows = stored.mutate(row=stored.rowid())
    rejects = settled(_rejects(opened, rows, faults), opened.on_bad_row)
    return rows.filter(rows.fault.isnull()).drop("fault", "value", "file"), rejects


def faults_of(faults: Sequence[Fault]) -> dict[str, Any]:
    """Columns `fault`, the number of a row's first fault, and `value`, what it is about."""
    return {
        "fault": ibis.cases(*((fault.condition, number) for number, fault in enumerate(faults))),
        "value": ibis.cases(*((fault.condition, fault.value.cast("string")) for fault in faults)),
    }


def is_empty(column: Column) -> Any:
    """Where a column has no value."""
    return column.isnull() | (column == "") if column.type().is_string() else column.isnull()


def read_lines(engine: Any, source: Source) -> Table:
    """Each line as it is, `line`; null if it is empty."""
    lines: Table = engine.read_csv(
        _paths(source.files),
        header=False,
        auto_detect=False,
        columns={"line": "VARCHAR"},
        delim="",
        quote="",
        escape="",
        comment="",
        strict_mode=False,
        null_padding=True,
        max_line_size=_MAX_LINE_BYTES,
        compression=source.compression,
        **_file_names(source),
    )
    return lines


@contextmanager
def faults_told(source: Source) -> Iterator[None]:
    """The engine's errors about a file as one line."""
    try:
        yield
    except duckdb.Error as error:
        fault = _csv_fault(str(error))
        if fault is None:
            raise explain(error, str(source.path)) from None
        raise DataError(
            f"{source.path}: {fault}; expected {source.kind}, mend it, or set prepare.format or prepare.on_bad_row=skip"
        ) from None


def _open_parquet(engine: Any, source: Source) -> Table:
    table: Table = engine.read_parquet(_paths(source.files), **_file_names(source))
    return table


def _open_objects(engine: Any, source: Source) -> Table:
    lines = read_lines(engine, source)
    kind = ibis.ifelse(_json_valid(lines.line), _json_type(lines.line), None)
    return lines.mutate(is_object=(kind == "OBJECT").fill_null(False))


def _open_text(engine: Any, source: Source, head: Header, on_bad_row: OnBadRow) -> Table:
    quote = '"' if source.kind in _QUOTED else ""
    table: Table = engine.read_csv(
        _paths(source.files),
        header=head.in_file,
        auto_detect=False,
        columns={f"column{place}": "VARCHAR" for place in range(len(head.names))},
        delim=DELIMITERS[source.kind],
        quote=quote,
        escape=quote,
        comment="",
        encoding=source.encoding,
        compression=source.compression,
        **({"store_rejects": True, "rejects_limit": 0} if on_bad_row == "skip" else {}),
        **_file_names(source),
    )
    return table


def _file_names(source: Source) -> dict[str, Any]:
    return {"filename": _FILE} if len(source.files) > 1 else {}


def _paths(files: Sequence[Path]) -> list[str]:
    """The paths, in which the engine finds no wildcards."""
    return [glob.escape(str(file)) for file in files]


def _json_path(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{escaped}"'


@ibis.udf.scalar.builtin(name="json_extract_string")
def _json_text(line: str, path: str) -> str:
    """The engine's own function: text as it is, anything else as it is written."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_type")
def _json_type(line: str) -> str:
    """The engine's own function; it fails for what is not JSON."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_valid")
def _json_valid(line: str) -> bool:
    """The engine's own function."""
    raise NotImplementedError


def _csv_fault(message: str) -> str | None:
    found = re.search(
        r"CSV Error on Line: (\d+)\nOriginal Line: (.*)\n(?:.*\n)*?\n*((?:Expected|Value|Maximum).*)", message
    )
    if found:
        return f"line {found[1]}: {found[2][:60]!r}: {found[3].rstrip('. ')}"
    if "state machine" in message:
        return "quotes are not closed, or lines end in different ways"
    return None


def _rejects(opened: Opened, rows: Table, faults: Sequence[Fault]) -> list[Reject]:
    """All of them, or, where one is an error, the first."""
    skip, source = opened.on_bad_row == "skip", opened.source
    told = [number for number, fault in enumerate(faults) if fault.expected]
    faulty = rows.filter(rows.fault.isin(told)).select("file", "row", "fault", "value").order_by("row")
    found = (faulty if skip else faulty.limit(1)).to_pyarrow().to_pylist()
    rejects = list(_malformed(opened)) if skip and source.kind in DELIMITERS else []
    if not found:
        return rejects
    first_rows = rows.group_by("file").aggregate(first=rows.row.min()).to_pyarrow().to_pylist()
    firsts = {row["file"]: row["first"] for row in first_rows}
    for file, name in zip(source.files, source.names, strict=True):
        key = str(file) if len(source.files) > 1 else None
        of_file = {row["row"] - firsts[key]: row for row in found if row["file"] == key}
        lines = _lines_of(opened, file, of_file, {reject.line for reject in rejects if reject.file == name})
        unit = "row" if source.kind == "parquet" else "line"
        for at, row in of_file.items():
            rejects.append(reject(name, lines[at], faults[row["fault"]], row["value"], unit))
    return sorted(rejects, key=lambda reject: (reject.file, reject.line))


def reject(file: Path, line: int, fault: Fault, value: str | None, unit: str) -> Reject:
    """A row with a fault."""
    assert fault.expected is not None
    return Reject(file, line, fault.column, value, fault.expected(value), unit)


def _lines_of(opened: Opened, file: Path, rows: Collection[int], left_out: Collection[int]) -> dict[int, int]:
    if opened.source.kind in DELIMITERS and rows:
        return line_numbers(opened.source, file, rows, opened.head.in_file, left_out)
    return {row: row + 1 for row in rows}


def _malformed(opened: Opened) -> Iterator[Reject]:
    """Lines of a table that is text which the engine left out."""
    errors = opened.engine.con.sql(
        "select distinct file_path, line, lower(error_type::varchar), csv_line from reject_errors "
        "join reject_scans using (scan_id, file_id) order by all"
    )
    names = {str(file): name for file, name in zip(opened.source.files, opened.source.names, strict=True)}
    for file, line, reason, text in errors.fetchall():
        if file in names:
            yield Reject(names[file], line, None, text, reason)
