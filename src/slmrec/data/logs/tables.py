"""Files that are tables, opened in the embedded engine, and their rows that are no good."""

import csv
import glob
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import ibis
from ibis.expr.types import Column, Table

from slmrec.data.engine import explain, keep
from slmrec.data.logs.columns import Header, header
from slmrec.data.logs.files import Source, copies_of, rewritten, unpacked
from slmrec.data.logs.formats import DELIMITERS, QUOTED, object_fault
from slmrec.data.logs.row_errors import OnBadRow, Reject, line_numbers, settled
from slmrec.data.logs.rows import records
from slmrec.errors import DataError

_MAX_LINE_BYTES = 2**25
_FILE = "slmrec_file"
Result = TypeVar("Result")


class Opened(NamedTuple):
    """A table in the engine, not yet read."""

    engine: Any
    source: Source
    read: Source
    """What the engine reads: the source itself, or copies without the lines that are no rows."""
    head: Header
    table: Table
    on_bad_row: OnBadRow
    left_out: list[Reject]
    """The lines that the copies lack."""

    def column(self, name: str) -> Column:
        """Text, but for parquet, which has types."""
        if self.source.kind == "jsonl":
            return ibis.ifelse(self.table.is_object, _json_text(self.table.line, _json_path(name)), None)
        if self.source.kind == "parquet":
            return self.table[name]
        return self.table[f"column{self.head.names.index(name)}"]

    def names(self) -> list[str]:
        """The names of all columns; of json lines, those of the first lines, then those that only later ones have."""
        found = list(self.head.names)
        if self.source.kind == "jsonl":
            objects = self.table.filter(self.table.is_object).line
            keys = _json_keys(objects).unnest().name("key").as_table().distinct()
            found += sorted(set(keys.to_pyarrow()["key"].to_pylist()) - set(found))
        return found


class Fault(NamedTuple):
    """A way in which a row may be no good."""

    condition: Any
    column: str | None
    """Its name in the file; none for the line as a whole."""
    value: Column
    expected: Callable[[str | None], str] | None
    """What was expected, for a faulty value; none: the row is skipped without a word."""


def with_table(
    engine: Any,
    spill: Path,
    source: Source,
    columns: Sequence[str] | None,
    on_bad_row: OnBadRow,
    use: Callable[[Opened], Result],
) -> Result:
    """What is made of a table whose columns have names.

    Where the engine stumbles over a line of a table that is text, `use` is called again, for copies without such lines.

    Args:
        engine: the embedded one.
        spill: a folder for temporary files.
        source: of any kind but one user a line or lists.
        columns: names for a file without header.
        on_bad_row: what to do with lines that are no rows.
        use: reads the table.

    Raises:
        DataError: it cannot be read, its columns cannot be told, or it has a bad line and `on_bad_row` is `error`.
    """
    source = unpacked(source, spill) if source.kind == "parquet" else rewritten(source, spill)
    with faults_told(source):
        opened = _open_table(engine, source, columns, on_bad_row)
        try:
            return use(opened)
        except duckdb.InvalidInputException:
            if source.kind not in DELIMITERS:
                raise
        return use(_without_bad_lines(opened, spill))


def _open_table(engine: Any, source: Source, columns: Sequence[str] | None, on_bad_row: OnBadRow) -> Opened:
    if source.kind == "parquet":
        table = _open_parquet(engine, source)
        head = Header([name for name in table.columns if name != _FILE], in_file=True)
    else:
        head = header(source, columns)
        table = _open_objects(engine, source) if source.kind == "jsonl" else _open_text(engine, source, head)
    return Opened(engine, source, source, head, table, on_bad_row, [])


def _without_bad_lines(opened: Opened, spill: Path) -> Opened:
    source, left_out = opened.source, []
    copies = copies_of(source, spill)
    for file, copy in zip(source.names, copies, strict=True):
        with copy.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            for record in records(source, file):
                cells = _cells(record.cells, len(opened.head.names))
                fault = record.fault or _wrong_width(cells, len(opened.head.names))
                if fault:
                    left_out.append(Reject(file, record.line, None, record.text, fault))
                elif cells:
                    writer.writerow(cells)
    settled(left_out, opened.on_bad_row)
    read = source._replace(kind="csv", files=copies, compression="none", encoding="utf-8")
    return opened._replace(read=read, table=_open_text(opened.engine, read, opened.head), left_out=left_out)


def _cells(cells: list[str], expected: int) -> list[str]:
    """Without empty ones behind the last column, as the engine has it."""
    return cells if any(cells[expected:]) else cells[:expected]


def _wrong_width(cells: Sequence[str], expected: int) -> str | None:
    return f"{len(cells)} columns, expected {expected}" if cells and len(cells) != expected else None


def good_rows(opened: Opened, columns: dict[str, Any], faults: Sequence[Fault]) -> tuple[Table, list[Reject]]:
    """The rows, read and kept, with their place in the input (`row`, from 0); and those that have a fault.

    Args:
        opened: the table.
        columns: what to keep of a row.
        faults: the first one that applies counts.

    Raises:
        DataError: a row has a fault, and `on_bad_row` is `error`.
    """
    if opened.source.kind == "jsonl":
        line = opened.table.line
        blank = Fault(is_empty(line.strip()), None, line, None)
        faults = [blank, Fault(~opened.table.is_object, None, line, _why_no_object), *faults]
    marked = opened.table.select(**columns, file=file_of(opened.table), **faults_of(faults))
    stored = keep(opened.engine, marked)
    rows = stored.mutate(row=stored.rowid())
    rejects = settled(_rejects(opened, rows, faults), opened.on_bad_row)
    return rows.filter(rows.fault.isnull()).drop("fault", "value", "file"), rejects


def _why_no_object(line: str | None) -> str:
    return object_fault(line or "") or "not JSON (it holds characters that are no Unicode)"


def faults_of(faults: Sequence[Fault]) -> dict[str, Any]:
    """Columns `fault`, the number of a row's first fault, and `value`, what it is about."""
    return {
        "fault": ibis.cases(*((fault.condition, number) for number, fault in enumerate(faults))),
        "value": ibis.cases(*((fault.condition, fault.value.cast("string")) for fault in faults)),
    }


def file_of(table: Table) -> Any:
    """The file that each row is from, if there are several."""
    return table[_FILE] if _FILE in table.columns else ibis.literal(None, "string")


def id_column(path: Path | str, name: str, ids: Column) -> Column:
    """A column of ids: whole numbers or text.

    Raises:
        DataError: it holds something else.
    """
    kind = ids.type()
    if kind.is_integer():
        return ids.try_cast("int64")
    if not kind.is_string():
        raise DataError(
            f"{path}: column {name!r} holds {kind}, expected ids that are text or whole numbers; convert the "
            "column (missing ids turn whole numbers into float64)"
        )
    return ids


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
        if "Maximum line size" in str(error):
            raise DataError(f"{source.path}: a line is too long; split it, or set prepare.format") from None
        raise explain(error, str(source.path)) from None


def _open_parquet(engine: Any, source: Source) -> Table:
    table: Table = engine.read_parquet(_paths(source.files), union_by_name=True, **_file_names(source))
    return table


def _open_objects(engine: Any, source: Source) -> Table:
    lines = read_lines(engine, source)
    kind = ibis.ifelse(_json_valid(lines.line), _json_type(lines.line), None)
    return lines.mutate(is_object=(kind == "OBJECT").fill_null(False))


def _open_text(engine: Any, source: Source, head: Header) -> Table:
    quote = '"' if source.kind in QUOTED else ""
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


@ibis.udf.scalar.builtin(name="json_keys", signature=(("string",), "array<string>"))
def _json_keys(line):  # type: ignore[no-untyped-def]
    """The engine's own function."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_type")
def _json_type(line: str) -> str:
    """The engine's own function; it fails for what is not JSON."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_valid")
def _json_valid(line: str) -> bool:
    """The engine's own function."""
    raise NotImplementedError


def _rejects(opened: Opened, rows: Table, faults: Sequence[Fault]) -> list[Reject]:
    """All of them, or, where one is an error, the first."""
    told = [number for number, fault in enumerate(faults) if fault.expected]
    faulty = rows.filter(rows.fault.isin(told)).select("file", "row", "fault", "value").order_by("row")
    found = (faulty if opened.on_bad_row == "skip" else faulty.limit(1)).to_pyarrow().to_pylist()
    if not found:
        return opened.left_out
    firsts = first_rows(rows)
    rejects = list(opened.left_out)
    for file, name in zip(opened.read.files, opened.source.names, strict=True):
        key = str(file) if len(opened.source.files) > 1 else None
        of_file = {row["row"] - firsts[key]: row for row in found if row["file"] == key}
        lines = _lines_of(opened, name, of_file)
        unit = "row" if opened.source.kind == "parquet" else "line"
        rejects += [reject(name, lines[at], faults[row["fault"]], row["value"], unit) for at, row in of_file.items()]
    if len(rejects) - len(opened.left_out) != len(found):
        raise RuntimeError(f"{opened.source.path}: {len(found)} faulty rows, but their files cannot be told")
    return sorted(rejects, key=lambda reject: (reject.file, reject.line))


def first_rows(rows: Table) -> dict[str | None, int]:
    """The number (`row`) of the first row of each file."""
    found = rows.group_by("file").aggregate(first=rows.row.min()).to_pyarrow().to_pylist()
    return {row["file"]: row["first"] for row in found}


def reject(file: Path, line: int, fault: Fault, value: str | None, unit: str) -> Reject:
    """A row with a fault."""
    assert fault.expected is not None
    return Reject(file, line, fault.column, value, fault.expected(value), unit)


def _lines_of(opened: Opened, file: Path, rows: Collection[int]) -> dict[int, int]:
    if opened.source.kind in DELIMITERS and rows:
        left_out = {reject.line for reject in opened.left_out if reject.file == file}
        return line_numbers(opened.source, file, rows, opened.head.in_file, left_out)
    return {row: row + 1 for row in rows}
