"""Tables in files, opened in the embedded engine, and checks of their rows."""

import csv
import glob
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import ibis
from ibis.expr.types import Column, Table

from slmrec.config.prepare import IdType, OnBadRow
from slmrec.data.engine import explain, keep
from slmrec.data.logs.checks import Check, check_columns, convert_ids, row_error
from slmrec.data.logs.columns import Header, header
from slmrec.data.logs.files import InputFiles, as_utf8, copy_paths, literals_as_json, unpacked
from slmrec.data.logs.formats import DELIMITERS, QUOTED, json_object_error
from slmrec.data.logs.row_errors import RowError, check_skippable, line_numbers
from slmrec.data.logs.rows import read_rows
from slmrec.data.parquet import unpacked_size
from slmrec.errors import DataError

_MAX_LINE_BYTES = 2**25
_FILE = "slmrec_file"
Result = TypeVar("Result")


class OpenTable(NamedTuple):
    """A table in the engine whose rows are not read yet."""

    engine: Any
    source: InputFiles
    """The files of the user."""
    read: InputFiles
    """The files that the engine reads: the source, or copies without the lines that cannot be parsed."""
    head: Header
    table: Table
    on_bad_row: OnBadRow
    line_errors: list[RowError]
    """The lines that the copies lack."""

    def column(self, name: str) -> Column:
        """Return a column, as text except for Parquet, which has types."""
        if self.source.format == "jsonl":
            return ibis.ifelse(self.table.is_object, _json_text(self.table.line, _json_path(name)), None)
        if self.source.format == "parquet":
            return self.table[name]
        return self.table[f"column{self.head.names.index(name)}"]

    def check_sizes(self, columns: Collection[str], memory_limit: str) -> None:
        """Refuse Parquet files whose columns, of those that are read, are out of proportion to the file."""
        if self.source.format == "parquet":
            for file, name in zip(self.source.files, self.source.names, strict=True):
                checked_size(file, name, columns, memory_limit)

    def names(self) -> list[str]:
        """Return all column names; for JSON lines, also keys that occur only after the first lines."""
        names = list(self.head.names)
        if self.source.format == "jsonl":
            objects = self.table.filter(self.table.is_object).line
            keys = _json_keys(objects).unnest().name("key").as_table().distinct()
            names += sorted(set(keys.to_pyarrow()["key"].to_pylist()) - set(names))
        return names


def with_table(
    engine: Any,
    spill: Path,
    source: InputFiles,
    columns: Sequence[str] | None,
    on_bad_row: OnBadRow,
    build: Callable[[OpenTable], Result],
) -> Result:
    """Open a table and return what `build` makes of it.

    Where the engine fails to parse a line of a text table, `build` is called again with copies of the files that lack
    such lines.

    Args:
        engine: the embedded engine.
        spill: a folder for temporary files.
        source: files of any format except `sequences` and `reference`.
        columns: names for a file without a header.
        on_bad_row: how to treat lines that cannot be parsed.
        build: reads the table.

    Raises:
        DataError: the table cannot be read, its columns cannot be detected, or it has an invalid line and
            `on_bad_row` is `error`.
    """
    source = unpacked(source, spill) if source.format == "parquet" else as_utf8(source, spill)
    source = literals_as_json(source, spill)
    with engine_errors_as_data_errors(source):
        table = _open_table(engine, source, columns, on_bad_row)
        try:
            return build(table)
        except duckdb.InvalidInputException:
            if source.format not in DELIMITERS:
                raise
        return build(_without_bad_lines(table, spill))


def _open_table(engine: Any, source: InputFiles, columns: Sequence[str] | None, on_bad_row: OnBadRow) -> OpenTable:
    if source.format == "parquet":
        table = _open_parquet(engine, source)
        head = Header([name for name in table.columns if name != _FILE], in_file=True)
    else:
        head = header(source, columns)
        table = _open_json(engine, source) if source.format == "jsonl" else _open_text(engine, source, head)
    return OpenTable(engine, source, source, head, table, on_bad_row, [])


def _without_bad_lines(opened: OpenTable, spill: Path) -> OpenTable:
    source, errors, width = opened.source, [], len(opened.head.names)
    copies = copy_paths(source, spill)
    for file, copy in zip(source.names, copies, strict=True):
        with copy.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            for row in read_rows(source, file):
                cells = _without_empty_tail(row.cells, width)
                reason = row.error or _wrong_width(cells, width)
                if reason:
                    errors.append(RowError(file, row.line, None, row.text, reason))
                elif cells:
                    writer.writerow(cells)
    check_skippable(errors, opened.on_bad_row)
    read = source._replace(format="csv", files=copies, compression="none")
    return opened._replace(read=read, table=_open_text(opened.engine, read, opened.head), line_errors=errors)


def _without_empty_tail(cells: list[str], expected: int) -> list[str]:
    """Remove empty cells after the last column, as the engine does."""
    return cells if any(cells[expected:]) else cells[:expected]


def _wrong_width(cells: Sequence[str], expected: int) -> str | None:
    return f"{len(cells)} columns, expected {expected}" if cells and len(cells) != expected else None


def valid_rows(
    opened: OpenTable, columns: dict[str, Any], checks: Sequence[Check], ids: Mapping[str, str], id_type: IdType
) -> tuple[Table, list[RowError]]:
    """Read the rows of a table into the engine and separate the invalid ones.

    Args:
        opened: the table.
        columns: the columns to keep, by their new name.
        checks: the checks of each row; the first one that applies is reported.
        ids: the columns of ids among `columns`, and their names in the file.
        id_type: the setting of `prepare`.

    Returns:
        The valid rows, with their place in the input (`row`, from 0), and the errors of the invalid ones.

    Raises:
        DataError: a row is invalid, and `on_bad_row` is `error`; or a column of ids holds fractions.
    """
    if opened.source.format == "jsonl":
        line = opened.table.line
        blank = Check(line.fill_null("").strip() == "", None, line, None)
        faulty = ~opened.table.is_object
        if _has_repeated_keys(opened.table.filter(opened.table.is_object)):
            faulty = faulty | (opened.table.is_object & _repeats_keys(line))
        checks = [blank, Check(faulty, None, line, _not_an_object), *checks]
    marked = opened.table.select(**columns, file=file_column(opened.table), **check_columns(checks))
    stored = keep(opened.engine, marked)
    rows = stored.mutate(row=stored.rowid())
    errors = check_skippable(_row_errors(opened, rows, checks), opened.on_bad_row)
    valid = rows.filter(rows.fault.isnull())
    converted = convert_ids(valid, ids, id_type)
    if isinstance(converted, Check):
        opened = opened._replace(on_bad_row="error")
        refused = valid.mutate(fault=ibis.ifelse(converted.condition, 0, None), value=converted.value.cast("string"))
        raise DataError(_row_errors(opened, refused, [converted])[-1].message())
    return converted.drop("fault", "value", "file"), errors


def _has_repeated_keys(objects: Table) -> bool:
    """Return whether an object has a key twice; only one of all objects with the same keys is examined, for speed."""
    distinct = objects.group_by(keys=_json_keys(objects.line).cast("string")).aggregate(line=objects.line.arbitrary())
    return bool(distinct.filter(_repeats_keys(distinct.line)).count().to_pyarrow().as_py())


def _repeats_keys(line: Any) -> Any:
    keys = _json_keys(line)
    return keys.unique().length() < keys.length()


def _not_an_object(line: str | None) -> str:
    return json_object_error(line or "") or "not JSON (it contains characters that are not Unicode)"


def file_column(table: Table) -> Any:
    """Return the column with the file of each row; null if there is only one file."""
    return table[_FILE] if _FILE in table.columns else ibis.literal(None, "string")


def read_lines(engine: Any, files: InputFiles) -> Table:
    """Open text files as a table with one column, `line`; empty lines are null."""
    lines: Table = engine.read_csv(
        _paths(files.files),
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
        compression=files.compression,
        **_file_name_options(files),
    )
    return lines


@contextmanager
def engine_errors_as_data_errors(files: InputFiles) -> Iterator[None]:
    """Convert the engine's errors about files to a `DataError` of one line."""
    try:
        yield
    except duckdb.Error as error:
        if "Maximum line size" in str(error):
            raise DataError(f"{files.path}: a line is too long; split it, or set prepare.format") from None
        raise explain(error, str(files.path)) from None


def _open_parquet(engine: Any, files: InputFiles) -> Table:
    table: Table = engine.read_parquet(_paths(files.files), union_by_name=True, **_file_name_options(files))
    return table


def checked_size(file: Path, name: Path, columns: Collection[str], memory_limit: str) -> int:
    """Return the size of columns of a Parquet file in memory.

    Args:
        file: the file, or an unpacked copy.
        name: the file of the user.
        columns: the columns that are read.
        memory_limit: the memory that the engine may use.

    Raises:
        DataError: the file is damaged, or the size is out of proportion to that of the file.
    """
    try:
        return unpacked_size(file, name, columns, memory_limit)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def _open_json(engine: Any, files: InputFiles) -> Table:
    lines = read_lines(engine, files)
    json_type = ibis.ifelse(_json_valid(lines.line), _json_type(lines.line), None)
    return lines.mutate(is_object=(json_type == "OBJECT").fill_null(False))


def _open_text(engine: Any, files: InputFiles, head: Header) -> Table:
    quote = '"' if files.format in QUOTED else ""
    table: Table = engine.read_csv(
        _paths(files.files),
        header=head.in_file,
        auto_detect=False,
        columns={f"column{index}": "VARCHAR" for index in range(len(head.names))},
        delim=DELIMITERS[files.format],
        quote=quote,
        escape=quote,
        comment="",
        compression=files.compression,
        **_file_name_options(files),
    )
    return table


def _file_name_options(files: InputFiles) -> dict[str, Any]:
    return {"filename": _FILE} if len(files.files) > 1 else {}


def _paths(files: Sequence[Path]) -> list[str]:
    """Return the paths with the engine's wildcards escaped."""
    return [glob.escape(str(file)) for file in files]


def _json_path(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{escaped}"'


@ibis.udf.scalar.builtin(name="json_extract_string")
def _json_text(line: str, path: str) -> str:
    """DuckDB's function: text without quotes, other values as JSON."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_keys", signature=(("string",), "array<string>"))
def _json_keys(line):  # type: ignore[no-untyped-def]
    """DuckDB's function."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_type")
def _json_type(line: str) -> str:
    """DuckDB's function; it fails for text that is not JSON."""
    raise NotImplementedError


@ibis.udf.scalar.builtin(name="json_valid")
def _json_valid(line: str) -> bool:
    """DuckDB's function."""
    raise NotImplementedError


def _row_errors(opened: OpenTable, rows: Table, checks: Sequence[Check]) -> list[RowError]:
    """Return the errors of all invalid rows, or only the first one if invalid rows are not skipped."""
    reported = [number for number, check in enumerate(checks) if check.expected]
    invalid = rows.filter(rows.fault.isin(reported)).select("file", "row", "fault", "value").order_by("row")
    invalid_rows = (invalid if opened.on_bad_row == "skip" else invalid.limit(1)).to_pyarrow().to_pylist()
    if not invalid_rows:
        return opened.line_errors
    firsts = first_rows(rows)
    errors = []
    for file, name in zip(opened.read.files, opened.source.names, strict=True):
        key = str(file) if len(opened.source.files) > 1 else None
        by_row = {row["row"] - firsts[key]: row for row in invalid_rows if row["file"] == key}
        lines = _lines_of(opened, name, by_row)
        unit = "row" if opened.source.format == "parquet" else "line"
        errors += [
            row_error(name, lines[number], checks[row["fault"]], row["value"], unit) for number, row in by_row.items()
        ]
    if len(errors) != len(invalid_rows):
        raise RuntimeError(f"{opened.source.path}: {len(invalid_rows)} invalid rows, but their files are unknown")
    return sorted(opened.line_errors + errors, key=lambda error: (error.file, error.line))


def first_rows(rows: Table) -> dict[str | None, int]:
    """Return the number (`row`) of the first row of each file."""
    firsts = rows.group_by("file").aggregate(first=rows.row.min()).to_pyarrow().to_pylist()
    return {row["file"]: row["first"] for row in firsts}


def _lines_of(opened: OpenTable, file: Path, rows: Collection[int]) -> dict[int, int]:
    if opened.source.format in DELIMITERS and rows:
        skipped = {error.line for error in opened.line_errors if error.file == file}
        return line_numbers(opened.source, file, rows, opened.head.in_file, skipped)
    return {row: row + 1 for row in rows}
