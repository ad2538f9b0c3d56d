"""Files before they are tables: which parts, which format, compressed or not, and whether they are whole, readable."""

import codecs
import collections
import gzip
import io
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import pyarrow as pa

from slmrec.data.logs.formats import FORMATS, Format, Kind, json_fault, kind_of_lines, kind_of_name, shown
from slmrec.data.logs.literals import as_json
from slmrec.errors import DataError

Compression = Literal["none", "gzip", "zstd"]

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = 2**20
_LINES_TO_LOOK_AT = 200
_LINES_FOR_KEYS = 1000
"""The keys of json lines are those of the first lines; a key may be missing from some of them."""
_NO_UNICODE = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can hold and the engine cannot."""


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
    files = parts(path)
    kinds = [cast(Kind, format) if format != "auto" else _kind_of(file, columns) for file in files]
    packed = [compression_of(file) for file in files]
    for file, kind, compression in zip(files, kinds, packed, strict=True):
        if (kind, compression) != (kinds[0], packed[0]):
            raise DataError(
                f"{path}: its files differ: {files[0].name} is {_called(kinds[0], packed[0])}, {file.name} is "
                f"{_called(kind, compression)}; give the file of the log alone, or a folder of parts of one kind"
            )
    absolute = tuple(file.resolve() for file in files)  # as the engine names them
    source = Source(path, kinds[0], absolute, files, packed[0])
    return _checked(source)


def _called(kind: Kind, compression: Compression) -> str:
    return kind if compression == "none" else f"{kind} ({compression})"


def parts(path: Path) -> tuple[Path, ...]:
    """The file itself, or the parts in a folder, in the order of their names.

    Raises:
        DataError: there are none.
    """
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
    with open_file(file) as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=None)


def keys(source: Source) -> list[str]:
    """The keys of the objects of json lines.

    Raises:
        DataError: none of the first lines is an object.
    """
    names: dict[str, None] = {}
    starts = (itertools.islice(lines(file), _LINES_FOR_KEYS) for file in source.files)
    first = list(itertools.chain.from_iterable(starts))
    for line in first:
        if line.strip() and not json_fault(line):
            names |= dict.fromkeys(name for name in json.loads(line) if not _NO_UNICODE.search(name))
    if not names:
        told = ((number, fault) for number, line in enumerate(first, 1) if (fault := json_fault(line)))
        number, fault = next(told, (1, "the objects have no keys"))
        raise DataError(f"{source.names[0]}: line {number}: {fault}; write one JSON object a line")
    return list(names)


def unpacked(source: Source, folder: Path) -> Source:
    """The same, unpacked into a folder if it is compressed."""
    if source.compression == "none":
        return source
    copies = copies_of(source, folder)
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
    copies = copies_of(source, folder)
    for file, copy in zip(source.files, copies, strict=True):
        with copy.open("w", encoding="utf-8") as stream:
            stream.writelines(map(as_json, lines(file)))
    return source._replace(kind="jsonl", files=copies, compression="none")


def copies_of(source: Source, folder: Path) -> tuple[Path, ...]:
    """Where to write what is made of the files."""
    below = Path(tempfile.mkdtemp(dir=folder))
    return tuple(below / f"{number:06d}" for number in range(len(source.files)))


def compression_of(file: Path) -> Compression:
    """How a file is compressed, by its first bytes."""
    with file.open("rb") as stream:
        first = stream.read(4)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "none")


def _kind_of(file: Path, columns: Collection[str]) -> Kind:
    head = next(_blocks(file), b"")
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(head) == _BLOCK_BYTES and len(text) > 1:
        text.pop()  # it may be cut off
    filled = [line for line in text[:_LINES_TO_LOOK_AT] if line.strip()]
    return kind_of_lines(filled, columns, kind_of_name(file)) or _unknown_kind(file, filled)


def _unknown_kind(file: Path, text: Sequence[str]) -> Kind:
    if not text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    if any("\0" in line for line in text):
        raise _unreadable(file, 1, b"\0", "text")
    raise DataError(
        f"{file}: neither the name nor the first line, {shown(text[0])}, tells the format; set prepare.format "
        f"({FORMATS})"
    )


def _checked(source: Source) -> Source:
    if source.kind == "parquet":
        for file in source.files:
            _check_parquet(source, file)
        return source
    encodings = {file: _check_text(source, file) for file in source.files}
    found = set(encodings.values()) - {"ascii"}
    if len(found) > 1:
        differ = ", ".join(f"{file.name} is {encoding}" for file, encoding in encodings.items() if encoding != "ascii")
        raise DataError(f"{source.path}: its parts differ: {differ[:200]}; save all of them as UTF-8")
    return source._replace(encoding=found.pop()) if found else source


def _check_parquet(source: Source, file: Path) -> None:
    size = file.stat().st_size if source.compression == "none" else sum(map(len, _blocks(file)))
    if not size:
        raise DataError(f"{file}: the file is empty; expected a parquet file with events")


def _check_text(source: Source, file: Path) -> str:
    """Reads a file to its end; its encoding."""
    line, has_text, encoding = 1, False, "ascii"
    ends = io.IncrementalNewlineDecoder(None, translate=False)
    try:
        for text in _decoded(file):
            if "\0" in text:
                raise _unreadable(file, line + text[: text.index("\0")].count("\n"), b"\0", "text")
            if source.kind == "sequences":
                ends.decode(text)
            line += text.count("\n")
            encoding = encoding if text.isascii() else "utf-8"
            has_text = has_text or bool(text.strip("\ufeff \t\r\n"))
    except UnicodeDecodeError as error:
        if source.kind in ("dat", "psv"):
            collections.deque(_blocks(file), maxlen=0)  # it may be cut off
            return "latin-1"  # as MovieLens, whose fields stand between :: or |
        line += error.object[: error.start].count(b"\n")
        raise _unreadable(file, line, error.object[error.start : error.start + 1], "UTF-8") from None
    if not has_text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    if isinstance(ends.newlines, tuple):
        kinds = " and ".join(map(repr, ends.newlines))
        raise DataError(f"{file}: lines end in {kinds}; expected one kind of line end; convert it with dos2unix")
    return encoding


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in itertools.chain(_blocks(file), [b""]):
        yield decoder.decode(block, final=not block)


def _unreadable(file: Path, line: int, byte: bytes, expected: str) -> DataError:
    return DataError(
        f"{file}: line {line}: byte {byte!r} is not {expected}; save the file as UTF-8 text, or set "
        "prepare.format if it is no text"
    )


def open_file(file: Path) -> IO[bytes]:
    """A file's content, unpacked as it is read."""
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
        with open_file(file) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{file}: the compressed file is cut off or damaged ({error}); copy or download the whole file again"
        ) from None
