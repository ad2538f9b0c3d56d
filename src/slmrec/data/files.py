"""Files before they are tables: which parts, which format, compressed or not, and whether they are whole, readable."""

import ast
import codecs
import csv
import gzip
import io
import itertools
import json
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import pyarrow as pa

from slmrec.errors import DataError

Kind = Literal["sequences", "csv", "tsv", "ssv", "psv", "dat", "parquet", "jsonl", "literal", "reference"]
Format = Literal["auto", "sequences", "csv", "tsv", "dat", "parquet", "jsonl", "reference"]
Compression = Literal["none", "gzip", "zstd"]

FORMATS = "one user a line (.txt), .csv, .tsv, .dat, .parquet or .jsonl, each plain, .gz or .zst"
DELIMITERS = {"csv": ",", "tsv": "\t", "ssv": " ", "psv": "|", "dat": "::"}
_KINDS: dict[str, Kind] = {
    ".txt": "sequences",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".item": "tsv",
    ".dat": "dat",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_PACKED = {".gz", ".zst"}
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = 2**20
_LINES_TO_LOOK_AT = 200
_LINES_FOR_KEYS = 1000
"""The keys of json lines are those of the first lines; a key may be missing from some of them."""
_BROKEN_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


class Source(NamedTuple):
    """A file, or a folder of parts, that was looked at: the format is known, and its text can be read to the end."""

    path: Path
    """As it was given."""
    kind: Kind
    files: tuple[Path, ...]
    """The parts to read, in the order of their names; one, for a file."""
    names: tuple[Path, ...]
    """What to call them: `files` may be copies, unpacked or rewritten."""
    compression: Compression
    encoding: str = "utf-8"


def inspect(path: Path, format: Format, columns: Collection[str]) -> Source:
    """The file or folder as a source, after it was read once, in blocks, to see that it is whole.

    Args:
        path: the file, or a folder of parts of one format; names that begin with `.` or `_` are no parts.
        format: `auto` goes by the content, and where that may be several things, by the name.
        columns: names that columns may have; a first line that has one of them is a header.

    Raises:
        DataError: there is no such file, its format cannot be told, or it is empty, cut off or no text.
    """
    files = _parts(path)
    kinds = [cast(Kind, format) if format != "auto" else _kind_of(file, columns) for file in files]
    packed = [compression_of(file) for file in files]
    for file, kind, compression in zip(files, kinds, packed, strict=True):
        if (kind, compression) != (kinds[0], packed[0]):
            raise DataError(
                f"{path}: its parts differ: {files[0].name} is {kinds[0]} ({packed[0]}), {file.name} is {kind} "
                f"({compression}); put parts of one kind into a folder of their own"
            )
    source = Source(path, kinds[0], files, files, packed[0])
    return _checked(source)


def _parts(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"{path}: no such file; set prepare.input (or prepare.items) to the path of one: {FORMATS}")
    inside = (file for file in path.rglob("*") if file.is_file())
    found = tuple(sorted(file for file in inside if not _hidden(file.relative_to(path))))
    if not found:
        raise DataError(f"{path}: the folder is empty; give a file, or a folder of parts: {FORMATS}")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def lines(file: Path) -> Iterator[str]:
    """The lines of a text file, without a byte-order mark."""
    with _open(file) as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=None)


def records(source: Source, file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that is text, each with the number of its first line.

    Raises:
        DataError: quotes are not closed.
    """
    delimiter = DELIMITERS[source.kind]
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, encoding=_with_mark(source.encoding), newline="")
        if source.kind not in {"csv", "tsv"}:
            yield from ((number, line.rstrip("\r\n").split(delimiter)) for number, line in enumerate(text, 1))
            return
        reader, line = csv.reader(text, delimiter=delimiter), 1
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{file}: line {line}: no row of a table ({error}); mend it") from None


def _with_mark(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding


def keys(source: Source) -> list[str]:
    """The keys of the objects of json lines.

    Raises:
        DataError: the first line is no object.
    """
    names: dict[str, None] = {}
    for line in itertools.islice(lines(source.files[0]), _LINES_FOR_KEYS):
        try:
            names |= dict.fromkeys(json.loads(line) if line.strip() else ())
        except (ValueError, TypeError, RecursionError):
            continue
    if not names:
        fault = next((fault for fault in map(json_fault, lines(source.files[0])) if fault), "no object")
        raise DataError(f"{source.path}: line 1: {fault}; write one JSON object a line")
    return list(names)


def json_fault(line: str) -> str | None:
    """What is wrong with a line of json lines; nothing if it is an object, or blank."""
    try:
        value = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError) as error:
        return f"{shown(line)} is not JSON ({getattr(error, 'msg', error)})"
    return None if isinstance(value, dict) else f"{shown(line)} is not a JSON object"


def unpacked(source: Source, folder: Path) -> Source:
    """The same, unpacked into a folder if it is compressed."""
    if source.compression == "none":
        return source
    copies = _copies(source, folder)
    for file, copy in zip(source.files, copies, strict=True):
        with copy.open("wb") as stream:
            stream.writelines(_blocks(file))
    return source._replace(files=copies, compression="none")


def rewritten(source: Source, folder: Path) -> Source:
    """The same as json lines, if the lines are Python literals (Amazon 2014); read, never run.

    A line that is no literal stays as it is, and so is told as a line that is not JSON.
    """
    if source.kind != "literal":
        return source
    copies = _copies(source, folder)
    for file, copy in zip(source.files, copies, strict=True):
        with copy.open("w", encoding="utf-8") as stream:
            stream.writelines(map(_as_json, lines(file)))
    return source._replace(kind="jsonl", files=copies, compression="none")


def _copies(source: Source, folder: Path) -> tuple[Path, ...]:
    below = Path(tempfile.mkdtemp(dir=folder))
    return tuple(below / f"{number:06d}" for number in range(len(source.files)))


def _as_json(line: str) -> str:
    try:
        return json.dumps(ast.literal_eval(line.strip()), ensure_ascii=False) + "\n" if line.strip() else "\n"
    except _BROKEN_LITERAL:
        return line


def list_cell(text: str) -> list[Any] | None:
    """The list that a cell of the reference's table holds; nothing if it is none."""
    try:
        value = ast.literal_eval(text)
    except _BROKEN_LITERAL:
        return None
    return value if isinstance(value, list) else None


def kind_of_name(path: Path) -> Kind | None:
    """The format that a file's name tells, whether or not it is compressed.

    >>> kind_of_name(Path("histories.jsonl.gz"))
    'jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return _KINDS.get(suffixes[-1]) if suffixes else None


def compression_of(file: Path) -> Compression:
    """How a file is compressed, by its first bytes."""
    with file.open("rb") as stream:
        first = stream.read(4)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "none")


def _kind_of(file: Path, columns: Collection[str]) -> Kind:
    head = next(_blocks(file), b"")
    if head.startswith(b"PAR1"):
        return "parquet"
    first_lines = head.decode("utf-8-sig", errors="replace").split("\n")[:_LINES_TO_LOOK_AT]
    whole = [line.rstrip("\r") for line in first_lines if line.strip()]
    return _kind_of_lines(whole[:-1] or whole, columns, kind_of_name(file)) or _unknown_kind(file, whole)


def _kind_of_lines(text: Sequence[str], columns: Collection[str], by_name: Kind | None) -> Kind | None:
    first = text[0] if text else ""
    if first.lstrip().startswith("{"):
        return _kind_of_objects(first)
    if by_name in {"jsonl", "parquet"} or not first:
        return by_name
    if "::" in first and by_name != "csv":
        return "dat"
    kind = _kind_of_table(text, columns, by_name)
    if kind == "csv" and _has_lists(text, columns):
        return "reference"
    return kind


def _kind_of_objects(first: str) -> Kind:
    return "literal" if json_fault(first) and _as_json(first) != first else "jsonl"


def _kind_of_table(text: Sequence[str], columns: Collection[str], by_name: Kind | None) -> Kind | None:
    if by_name in ("csv", "tsv"):
        other: Kind = "tsv" if by_name == "csv" else "csv"
        swapped = DELIMITERS[by_name] not in text[0] and DELIMITERS[other] in text[0]
        return other if swapped else by_name
    for kind, delimiter in DELIMITERS.items():
        if _header_names(text[0], delimiter) & set(columns):
            return cast(Kind, kind)
    events = (kind for kind, delimiter in DELIMITERS.items() if looks_like_events(text, delimiter))
    kind_of_events = cast(Kind | None, next(events, None))
    if kind_of_events or text[0].count("|") > 1:
        return kind_of_events or "psv"
    return "sequences" if len(text[0].split()) > 1 and "," not in text[0] else by_name


def looks_like_events(text: Sequence[str], delimiter: str) -> bool:
    """Whether lines are rows of a table of two to four columns in which the first one's values come again."""
    rows = [line.strip(" ").split(delimiter) for line in text]
    widths = {len(row) for row in rows}
    return len(widths) == 1 and 2 <= len(rows[0]) <= 4 and 0 < len({row[0] for row in rows}) < len(rows)


def _header_names(line: str, delimiter: str) -> set[str]:
    return {plain_name(name.strip().strip('"')) for name in line.split(delimiter)}


def _has_lists(text: Sequence[str], columns: Collection[str]) -> bool:
    names, *rows = csv.reader(io.StringIO("\n".join(text[:2])))
    cells = dict(zip(names, rows[0], strict=False)) if rows else {}
    return any(cell.startswith("[") for name, cell in cells.items() if plain_name(name) in columns)


def _unknown_kind(file: Path, text: Sequence[str]) -> Kind:
    if not text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    raise DataError(
        f"{file}: neither the name nor the first line, {shown(text[0])}, tells the format; set prepare.format "
        f"({FORMATS})"
    )


def plain_name(column: str) -> str:
    """The name of a column, without the type that some headers write behind it.

    >>> plain_name("user_id:token")
    'user_id'
    """
    name, _, kind = column.partition(":")
    return name if kind in {"token", "float", "token_seq", "float_seq"} else column


def _checked(source: Source) -> Source:
    if source.kind == "parquet":
        for file in source.files:
            _check_parquet(source, file)
        return source
    encodings = [_check_text(source, file) for file in source.files]
    return source._replace(encoding="latin-1") if "latin-1" in encodings else source


def _check_parquet(source: Source, file: Path) -> None:
    size = file.stat().st_size if source.compression == "none" else sum(map(len, _blocks(file)))
    if not size:
        raise DataError(f"{file}: the file is empty; expected a parquet file with events")


def _check_text(source: Source, file: Path) -> str:
    """Reads a file to its end; its encoding."""
    line, has_text = 1, False
    ends = io.IncrementalNewlineDecoder(None, translate=False)
    try:
        for text in _decoded(file):
            if "\0" in text:
                raise _unreadable(file, line + text[: text.index("\0")].count("\n"), b"\0", "text")
            if source.kind == "sequences":
                ends.decode(text)
            line += text.count("\n")
            has_text = has_text or (bool(text) and not text.isspace() and text != "\ufeff")
    except UnicodeDecodeError as error:
        if source.kind in ("dat", "psv"):
            return "latin-1"  # as MovieLens, whose fields stand between :: or |
        line += error.object[: error.start].count(b"\n")
        raise _unreadable(file, line, error.object[error.start : error.start + 1], "UTF-8") from None
    if not has_text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    if isinstance(ends.newlines, tuple):
        kinds = " and ".join(map(repr, ends.newlines))
        raise DataError(f"{file}: lines end in {kinds}; expected one kind of line end; convert it with dos2unix")
    return "utf-8"


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in itertools.chain(_blocks(file), [b""]):
        yield decoder.decode(block, final=not block)


def _unreadable(file: Path, line: int, byte: bytes, expected: str) -> DataError:
    return DataError(
        f"{file}: line {line}: byte {byte!r} is not {expected}; save the file as UTF-8 text, or set "
        "prepare.format if it is no text"
    )


def _open(file: Path) -> IO[bytes]:
    compression = compression_of(file)
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(file))
    if compression == "zstd":
        return io.BufferedReader(cast(io.RawIOBase, _ZstdFile(file)))
    return file.open("rb")


class _ZstdFile(io.RawIOBase):
    def __init__(self, file: Path) -> None:
        self._stream = pa.input_stream(str(file), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with _open(file) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{file}: the compressed file is cut off or damaged ({error}); copy or download the whole file again"
        ) from None


def shown(line: str) -> str:
    """A line, short enough for a message."""
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
