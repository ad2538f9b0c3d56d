"""Input files before they are parsed: their parts, format, compression and encoding, and whether they are complete."""

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

from slmrec.config.prepare import LogFormat
from slmrec.data.logs.formats import FORMATS, Format, excerpt, format_of_lines, format_of_name, json_error
from slmrec.data.logs.literals import as_json
from slmrec.errors import DataError

Compression = Literal["none", "gzip", "zstd"]

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = 2**20
_NUM_SAMPLE_LINES = 200
_NUM_LINES_FOR_KEYS = 1000
"""The first lines determine the keys of JSON lines; some of them may lack a key."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogates, which JSON can represent and the engine cannot."""


class InputFiles(NamedTuple):
    """A file, or a folder of parts, whose format is known and which can be read completely."""

    path: Path
    """The path that the user gave."""
    format: Format
    files: tuple[Path, ...]
    """The files to read, in the order of their names."""
    names: tuple[Path, ...]
    """The user's files for messages; `files` may be unpacked or converted copies."""
    compression: Compression
    encoding: str = "utf-8"


def inspect(path: Path, format: LogFormat | Format, columns: Collection[str]) -> InputFiles:
    """Detect the format of a file or folder, and read all of it once in blocks to check that it is complete.

    Args:
        path: the file, or a folder of parts in one format; names that begin with `.` or `_` are ignored.
        format: the format; `auto` detects it from the content, or from the name where the content is ambiguous.
        columns: usual names of columns; a first line that contains one of them is a header.

    Raises:
        DataError: the file does not exist, its format cannot be detected, or it is empty, truncated or not text.
    """
    files = parts(path)
    formats = [_detect_format(file, columns) if format == "auto" else format for file in files]
    compressions = [compression_of(file) for file in files]
    kinds = [_describe(*pair) for pair in zip(formats, compressions, strict=True)]
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{path}: its files differ: {files[0].name} is {kinds[0]}, {file.name} is {kind}; give the file of the "
                "log alone, or a folder of parts of one format"
            )
    absolute = tuple(file.resolve() for file in files)  # the engine reports absolute paths
    return _checked(InputFiles(path, formats[0], absolute, files, compressions[0]))


def _describe(format: Format, compression: Compression) -> str:
    return format if compression == "none" else f"{format} ({compression})"


def parts(path: Path) -> tuple[Path, ...]:
    """Return the file itself, or the files in a folder in the order of their names.

    Raises:
        DataError: there is no such file, or the folder is empty.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"{path}: no such file; set prepare.input (or prepare.items) to the path of one: {FORMATS}")
    files = (file for file in path.rglob("*") if file.is_file())
    visible = tuple(sorted(file for file in files if not _is_hidden(file.relative_to(path))))
    if not visible:
        raise DataError(f"{path}: the folder is empty; give a file, or a folder of parts: {FORMATS}")
    return visible


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file, without a byte-order mark."""
    with open_file(file) as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=None)


def json_keys(files: InputFiles) -> list[str]:
    """Return the keys of the objects in the first JSON lines.

    Raises:
        DataError: none of the first lines is an object with keys.
    """
    names: dict[str, None] = {}
    starts = (itertools.islice(lines(file), _NUM_LINES_FOR_KEYS) for file in files.files)
    first = list(itertools.chain.from_iterable(starts))
    for line in first:
        if line.strip() and not json_error(line):
            names |= dict.fromkeys(name for name in json.loads(line) if not _SURROGATE.search(name))
    if not names:
        errors = ((number, error) for number, line in enumerate(first, 1) if (error := json_error(line)))
        number, error = next(errors, (1, "the objects have no keys"))
        raise DataError(f"{files.names[0]}: line {number}: {error}; write one JSON object per line")
    return list(names)


def unpacked(files: InputFiles, folder: Path) -> InputFiles:
    """Decompress the files into a folder; return uncompressed files unchanged."""
    if files.compression == "none":
        return files
    copies = copy_paths(files, folder)
    for file, copy in zip(files.files, copies, strict=True):
        with copy.open("wb") as stream:
            stream.writelines(_blocks(file))
    return files._replace(files=copies, compression="none")


def literals_as_json(files: InputFiles, folder: Path) -> InputFiles:
    """Convert lines of Python literals (Amazon 2014) to JSON lines in a folder; return other formats unchanged.

    A line that is not a literal is copied unchanged, and so is reported later as a line that is not JSON.
    """
    if files.format != "literal":
        return files
    copies = copy_paths(files, folder)
    for file, copy in zip(files.files, copies, strict=True):
        with copy.open("w", encoding="utf-8") as stream:
            stream.writelines(map(as_json, lines(file)))
    return files._replace(format="jsonl", files=copies, compression="none")


def copy_paths(files: InputFiles, folder: Path) -> tuple[Path, ...]:
    """Return paths for converted copies of the files, in a new folder within `folder`."""
    new = Path(tempfile.mkdtemp(dir=folder))
    return tuple(new / f"{number:06d}" for number in range(len(files.files)))


def compression_of(file: Path) -> Compression:
    """Detect the compression of a file from its first bytes."""
    with file.open("rb") as stream:
        first = stream.read(4)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "none")


def _detect_format(file: Path, columns: Collection[str]) -> Format:
    head = next(_blocks(file), b"")
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(head) == _BLOCK_BYTES and len(text) > 1:
        text.pop()  # the last line may be incomplete
    sample = [line for line in text[:_NUM_SAMPLE_LINES] if line.strip()]
    format = format_of_lines(sample, columns, format_of_name(file))
    if format is None:
        raise _unknown_format(file, sample)
    return format


def _unknown_format(file: Path, text: Sequence[str]) -> DataError:
    if not text:
        return DataError(f"{file}: the file is empty; expected {FORMATS}")
    if any("\0" in line for line in text):
        return _unreadable(file, 1, b"\0", "text")
    return DataError(
        f"{file}: the format cannot be detected from the name or the first line, {excerpt(text[0])}; set "
        f"prepare.format ({FORMATS})"
    )


def _checked(files: InputFiles) -> InputFiles:
    if files.format == "parquet":
        for file in files.files:
            _check_parquet(files, file)
        return files
    encodings = {file: _check_text(files, file) for file in files.files}
    distinct = set(encodings.values()) - {"ascii"}
    if len(distinct) > 1:
        differ = ", ".join(f"{file.name} is {encoding}" for file, encoding in encodings.items() if encoding != "ascii")
        raise DataError(f"{files.path}: its parts differ: {differ[:200]}; save all of them as UTF-8")
    return files._replace(encoding=distinct.pop()) if distinct else files


def _check_parquet(files: InputFiles, file: Path) -> None:
    size = file.stat().st_size if files.compression == "none" else sum(map(len, _blocks(file)))
    if not size:
        raise DataError(f"{file}: the file is empty; expected a parquet file with events")


def _check_text(files: InputFiles, file: Path) -> str:
    """Read a text file to its end and return its encoding."""
    line, has_text, encoding = 1, False, "ascii"
    line_ends = io.IncrementalNewlineDecoder(None, translate=False)
    try:
        for text in _decoded(file):
            if "\0" in text:
                raise _unreadable(file, line + text[: text.index("\0")].count("\n"), b"\0", "text")
            if files.format == "sequences":
                line_ends.decode(text)
            line += text.count("\n")
            encoding = encoding if text.isascii() else "utf-8"
            has_text = has_text or bool(text.strip("\ufeff \t\r\n"))
    except UnicodeDecodeError as error:
        if files.format in ("dat", "psv"):  # MovieLens, with :: or | between its fields, is Latin-1
            collections.deque(_blocks(file), maxlen=0)  # the file may be truncated
            return "latin-1"
        line += error.object[: error.start].count(b"\n")
        raise _unreadable(file, line, error.object[error.start : error.start + 1], "UTF-8") from None
    if not has_text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    if isinstance(line_ends.newlines, tuple):
        ends = " and ".join(map(repr, line_ends.newlines))
        raise DataError(f"{file}: lines end in {ends}; expected one kind of line end; convert it with dos2unix")
    return encoding


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in itertools.chain(_blocks(file), [b""]):
        yield decoder.decode(block, final=not block)


def _unreadable(file: Path, line: int, byte: bytes, expected: str) -> DataError:
    return DataError(
        f"{file}: line {line}: byte {byte!r} is not {expected}; save the file as UTF-8 text, or set "
        "prepare.format if the file is not text"
    )


def open_file(file: Path) -> IO[bytes]:
    """Open a file for reading; compressed content is decompressed on the fly."""
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
            f"{file}: the compressed file is truncated or damaged ({error}); copy or download the whole file again"
        ) from None
