"""Raw files as tables of events: `user_id`, `item_id` (as text), `timestamp` (whole number or null), `row`.

Everything is an Ibis expression, so that the engine can be another one; `connect` is the only place that chooses it.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
from ibis.expr.types import Table

from slmrec.errors import ConfigError, DataError

Format = Literal["auto", "sequences", "csv", "tsv", "parquet", "jsonl"]
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "sequences",
}
_FORMATS = "one user a line (.txt), .csv, .tsv, .parquet or .jsonl, each plain or .gz"
_NO_DELIMITER = "\x1f"


def connect() -> Any:
    """The engine: DuckDB, embedded."""
    return ibis.duckdb.connect()


def keep(engine: Any, table: Table) -> Table:
    """The table, computed once and kept in the engine."""
    return engine.create_table(ibis.util.gen_name("slmrec"), table, temp=True)


def read_events(
    engine: Any, path: Path, format: Format = "auto", *, user_col: str, item_col: str, time_col: str
) -> Table:
    """The events of a file, in any order; `row` is their order in the file.

    Raises:
        DataError: the file cannot be read as events; the message names the file, the line and the value.
    """
    kind = _format_of(path, format)
    try:
        if kind == "sequences":
            return _sequences(engine, path)
        return _events_of_table(engine, path, kind, user_col, item_col, time_col)
    except duckdb.Error as error:
        raise _explain(path, error) from None


def read_titles(engine: Any, path: Path, *, id_col: str, title_col: str) -> Table:
    """`item_id` and `title` (text) of a table of items; the first title of an id counts.

    Raises:
        DataError: the file cannot be read, or has no such columns.
    """
    kind = _format_of(path, "auto")
    if kind == "sequences":
        raise DataError(f"{path}: expected a table of items (.csv, .tsv, .parquet or .jsonl)")
    try:
        table = _table(engine, path, kind)
        _require(table, path, {"items_id_col": id_col, "title_col": title_col})
        numbered = table.select(
            item_id=table[id_col].cast("string"), title=table[title_col].cast("string"), row=ibis.row_number()
        )
        first = (
            numbered.filter(numbered.title.notnull())
            .group_by("item_id")
            .aggregate(title=lambda t: t.title.first(order_by=t.row))
        )
        return keep(engine, first)
    except duckdb.Error as error:
        raise _explain(path, error) from None


def _format_of(path: Path, format: Format) -> Format:
    if not path.exists():
        raise DataError(f"{path}: no such file; give the path of the interactions with --input or prepare.input")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one file: {_FORMATS}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected {_FORMATS}")
    if format != "auto":
        return format
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    raise ConfigError(f"{path}: the name does not tell the format; set prepare.format ({_FORMATS})")


def _table(engine: Any, path: Path, kind: Format) -> Table:
    if kind == "parquet":
        return engine.read_parquet(str(path))
    compression = "gzip" if _is_gzip(path) else "none"
    if kind == "jsonl":
        return engine.read_json(str(path), format="newline_delimited", compression=compression)
    delimiter = "\t" if kind == "tsv" else ","
    return engine.read_csv(str(path), header=True, all_varchar=True, delim=delimiter, compression=compression)


def _sequences(engine: Any, path: Path) -> Table:
    lines = engine.read_csv(
        str(path),
        header=False,
        auto_detect=False,
        columns={"line": "VARCHAR"},
        delim=_NO_DELIMITER,
        quote="",
        escape="",
        compression="gzip" if _is_gzip(path) else "none",
    )
    words = keep(engine, lines.select(words=lines.line.strip().re_split(r"\s+"), line=ibis.row_number()))
    if words.filter(words.words.length() < 2).count().execute() or not words.count().execute():
        raise _line_without_items(path)
    events = words.select(
        "line", user_id=words.words[0], pair=ibis.range(1, words.words.length()).zip(words.words[1:])
    ).unnest("pair")
    place, item = events.pair["f1"], events.pair["f2"]
    order = ibis.row_number().over(order_by=[events.line, place])
    return keep(engine, events.select("user_id", item_id=item, timestamp=ibis.null().cast("int64"), row=order))


def _events_of_table(engine: Any, path: Path, kind: Format, user_col: str, item_col: str, time_col: str) -> Table:
    table = _table(engine, path, kind)
    _require(table, path, {"user_col": user_col, "item_col": item_col, "time_col": time_col})
    raw = table.select(
        user_id=table[user_col].cast("string"),
        item_id=table[item_col].cast("string"),
        time=table[time_col].cast("string"),
        row=ibis.row_number(),
    )
    events = keep(engine, raw.mutate(timestamp=_seconds(raw.time)))
    if not events.count().execute():
        raise DataError(f"{path}: has a header but no events; expected one event a line")
    for column, name in (("user_id", user_col), ("item_id", item_col)):
        empty = events.filter(events[column].isnull() | (events[column] == ""))
        _refuse_first(empty, path, kind, name, column, "an id", "remove the row or fill in the id")
    untimed = events.filter(events.timestamp.isnull())
    _refuse_first(untimed, path, kind, time_col, "time", "a whole number or a date", "mend or remove the row")
    return events.drop("time")


def _seconds(text: Any) -> Any:
    """Whole numbers as they are (seconds, milliseconds, ...), dates as seconds since 1970, anything else null."""
    whole = ibis.ifelse(text.re_search(r"^[+-]?[0-9]+(\.0*)?$"), text.re_replace(r"\.0*$", ""), None)
    return ibis.coalesce(whole.try_cast("int64"), text.try_cast("timestamp").epoch_seconds().cast("int64"))


def _require(table: Table, path: Path, wanted: dict[str, str]) -> None:
    for option, column in wanted.items():
        if column not in table.columns:
            raise DataError(
                f"{path}: no column {column!r}; it has {', '.join(table.columns)}; set prepare.{option} to one of them"
            )


def _refuse_first(bad: Table, path: Path, kind: Format, name: str, column: str, expected: str, remedy: str) -> None:
    rows = bad.order_by("row").limit(1).select("row", column).to_pyarrow().to_pylist()
    if rows:
        number = rows[0]["row"] + (2 if kind in ("csv", "tsv") else 1)
        where = "row" if kind == "parquet" else "line"
        raise DataError(f"{path}: {where} {number}: {name} is {rows[0][column]!r}, expected {expected}; {remedy}")


def _line_without_items(path: Path) -> DataError:
    for number, line in enumerate(_lines(path), 1):
        if len(line.split()) < 2:
            return DataError(
                f"{path}: line {number}: {line.decode().strip()!r} has no items, expected `user item item ...`; "
                "remove the line"
            )
    return DataError(f"{path}: no lines; expected `user item item ...` on each")


def _explain(path: Path, error: Exception) -> DataError:
    """What is wrong with a file that the engine cannot read: found by reading it once more, line by line."""
    number = 0
    try:
        for number, line in enumerate(_lines(path), 1):  # noqa: B007 - read by the handler below
            line.decode("utf-8")
    except UnicodeDecodeError as fault:
        return DataError(
            f"{path}: line {number}: byte {fault.object[fault.start : fault.start + 1]!r} is not UTF-8; "
            "convert the file, for example with iconv -t UTF-8"
        )
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return DataError(f"{path}: the gzip file is cut off or damaged; copy or download it again")
    return DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); expected {_FORMATS}")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as stream:
        yield from stream
