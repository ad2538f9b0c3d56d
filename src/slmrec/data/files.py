"""Files before they are tables: which format, compressed or not, and whether they are whole, readable text."""

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

from slmrec.errors import DataError

Kind = Literal["sequences", "csv", "tsv", "parquet", "jsonl"]
Format = Literal["auto", "sequences", "csv", "tsv", "parquet", "jsonl"]

FORMATS = "one user a line (.txt), .csv, .tsv, .parquet or .jsonl, each plain or .gz"
DELIMITERS = {"csv": ",", "tsv": "\t"}
_KINDS: dict[str, Kind] = {
    ".txt": "sequences",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_BLOCK_BYTES = 2**20
_LINES_FOR_KEYS = 1000
"""The keys of json lines are those of the first lines; a key may be missing from some of them."""


class Source(NamedTuple):
    """A file that was looked at: it exists, its format is known, and its text can be read to the end."""

    path: Path
    kind: Kind
    gzipped: bool


def inspect(path: Path, format: Format, columns: Collection[str]) -> Source:
    """The file as a source, after it was read once, in blocks, to see that it is whole.

    Args:
        path: the file.
        format: `auto` goes by the name, and if that does not tell, by the first line.
        columns: the columns that will be asked for; a first line that has one of them is a header.

    Raises:
        DataError: there is no such file, its format is unknown, or it is empty, cut off, or not UTF-8.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one file: {FORMATS}")
    if not path.exists():
        raise DataError(f"{path}: no such file; set prepare.input (or prepare.items) to the path of one: {FORMATS}")
    gzipped = _starts_with(path, b"\x1f\x8b")
    kind = format if format != "auto" else kind_of_name(path) or _kind_of_content(path, columns)
    source = Source(path, kind, gzipped)
    _check_parquet(source) if kind == "parquet" else _check_text(source)
    return source


def lines(source: Source) -> Iterator[str]:
    """The lines of a text file, without a byte-order mark."""
    with _open(source.path) as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)


def header(source: Source) -> list[str]:
    """The names of the columns of a csv, tsv or json lines file.

    Raises:
        DataError: the first lines have no names.
    """
    if source.kind == "jsonl":
        return _keys(source)
    with _open(source.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            return next(csv.reader(text, delimiter=DELIMITERS[source.kind]))
        except csv.Error as error:
            raise DataError(f"{source.path}: line 1: no names of columns ({error}); begin with a header") from None


def unpacked(source: Source, folder: Path) -> Path:
    """The file itself, or its unpacked copy in a folder."""
    if not source.gzipped:
        return source.path
    copy = folder / f"unpacked.{source.kind}"
    with copy.open("wb") as stream:
        stream.writelines(_blocks(source.path))
    return copy


def first_bad_json(source: Source) -> str | None:
    """What is wrong with the first line that is no JSON object, with its number; nothing if all are."""
    for number, line in enumerate(lines(source), 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            return f"line {number}: {_shown(line)} is not JSON ({getattr(error, 'msg', error)})"
        if not isinstance(value, dict):
            return f"line {number}: {_shown(line)} is not a JSON object"
    return None


def _keys(source: Source) -> list[str]:
    names: dict[str, None] = {}
    for line in itertools.islice(lines(source), _LINES_FOR_KEYS):
        try:
            names |= dict.fromkeys(json.loads(line) if line.strip() else ())
        except (ValueError, TypeError, RecursionError):
            break
    fault = None if names else first_bad_json(source)
    if fault:
        raise DataError(f"{source.path}: {fault}; write one JSON object a line")
    return list(names)


def kind_of_name(path: Path) -> Kind | None:
    """The format that a file's name tells, whether or not it is compressed.

    >>> kind_of_name(Path("histories.jsonl.gz"))
    'jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _kind_of_content(path: Path, columns: Collection[str]) -> Kind:
    first = next(_blocks(path), b"")[:_BLOCK_BYTES]
    if first.startswith(b"PAR1"):
        return "parquet"
    line = first.decode("utf-8-sig", errors="replace").lstrip().partition("\n")[0].rstrip()
    if line.startswith("{"):
        return "jsonl"
    for kind, delimiter in DELIMITERS.items():
        if {plain_name(name.strip('"')) for name in line.split(delimiter)} & set(columns):
            return cast(Kind, kind)
    if len(line.split()) > 1 and "," not in line:
        return "sequences"
    raise DataError(
        f"{path}: neither the name nor the first line, {_shown(line)}, tells the format; set prepare.format ({FORMATS})"
    )


def plain_name(column: str) -> str:
    """The name of a column, without the type that some headers write behind it.

    >>> plain_name("user_id:token")
    'user_id'
    """
    name, _, kind = column.partition(":")
    return name if kind in {"token", "float", "token_seq", "float_seq"} else column


def _check_parquet(source: Source) -> None:
    size = sum(map(len, _blocks(source.path))) if source.gzipped else source.path.stat().st_size
    if not size:
        raise DataError(f"{source.path}: the file is empty; expected a parquet file with events")


def _check_text(source: Source) -> None:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=False)
    line, has_text = 1, False
    for block in itertools.chain(_blocks(source.path), [b""]):
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise _unreadable(source, line, error.object[error.start : error.start + 1], "UTF-8") from None
        if "\0" in text:
            raise _unreadable(source, line + text[: text.index("\0")].count("\n"), b"\0", "text")
        line += text.count("\n")
        has_text = has_text or (bool(text) and not text.isspace() and text != "\ufeff")
    if not has_text:
        raise DataError(f"{source.path}: the file is empty; expected {FORMATS}")
    if source.kind == "sequences" and isinstance(decoder.newlines, tuple):
        ends = " and ".join(map(repr, decoder.newlines))
        raise DataError(f"{source.path}: lines end in {ends}; expected one kind of line end; convert it with dos2unix")


def _unreadable(source: Source, line: int, byte: bytes, expected: str) -> DataError:
    return DataError(
        f"{source.path}: line {line}: byte {byte!r} is not {expected}; save the file as UTF-8 text, or set "
        "prepare.format if it is no text"
    )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _starts_with(path, b"\x1f\x8b") else path.open("rb")


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip file is cut off or damaged ({error}); copy or download the whole file again"
        ) from None


def _shown(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
