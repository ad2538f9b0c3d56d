"""Input files before they are parsed: their parts, format, compression and encoding, and whether they are complete."""

import io
import itertools
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from slmrec.config.prepare import LogFormat
from slmrec.data.logs.archives import is_hidden, log_in_archive
from slmrec.data.logs.compression import BLOCK_BYTES, Compression, blocks, compression_of, open_file
from slmrec.data.logs.encodings import check_text, encoding_of_mark, is_utf8, not_text, separator_of, without_escapes
from slmrec.data.logs.formats import DELIMITERS, FORMATS, Format, excerpt, format_of_lines, format_of_name, json_error
from slmrec.data.logs.literals import as_json
from slmrec.errors import DataError
from slmrec.files import special_file

_SEPARATED: tuple[Format, ...] = ("csv", "tsv", "scsv", "psv", "ssv")
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
    """The encoding of the user's files."""
    escaped: frozenset[Path] = frozenset()
    """Those of the user's files whose quotes are escaped by a backslash."""
    is_readable: bool = True
    """True if the engine can read the files; otherwise it reads copies (`as_utf8`)."""


def inspect(
    path: Path, format: LogFormat | Format, columns: Collection[str], encoding: str | None = None
) -> InputFiles:
    """Detect the format of a file or folder, and read all of it once in blocks to check that it is complete.

    Args:
        path: the file, or a folder of parts in one format; names that begin with `.` or `_` are ignored.
        format: the format; `auto` detects it from the content, or from the name where the content is ambiguous.
        columns: usual names of columns; a first line that contains one of them is a header.
        encoding: the encoding of text that is not UTF-8 and has no byte-order mark.

    Raises:
        DataError: the file does not exist, its format cannot be detected, or it is empty, truncated or not text.
    """
    files = parts(path)
    formats = [_detect_format(file, columns, encoding) if format == "auto" else format for file in files]
    compressions = [compression_of(file) for file in files]
    kinds = [_describe(*pair) for pair in zip(formats, compressions, strict=True)]
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{path}: its files differ: {files[0].name} is {kinds[0]}, {file.name} is {kind}; give the file of the "
                "log alone, or a folder of parts of one format"
            )
    absolute = tuple(file.resolve() for file in files)  # the engine reports absolute paths
    return _checked(InputFiles(path, formats[0], absolute, files, compressions[0]), encoding)


def _describe(format: Format, compression: Compression) -> str:
    return format if compression == "none" else f"{format} ({compression})"


def parts(path: Path) -> tuple[Path, ...]:
    """Return the file itself, or the files in a folder in the order of their names.

    Raises:
        DataError: there is no such file, or the folder is empty.
    """
    if path.is_file():
        return (path,)
    if kind := special_file(path):
        raise DataError(f"{path}: is {kind}, which is read several times; save it to a file first")
    if not path.is_dir():
        raise DataError(f"{path}: no such file; set prepare.input (or prepare.items) to the path of one: {FORMATS}")
    for file in path.rglob("*"):
        if kind := special_file(file):
            raise DataError(f"{file}: is {kind}, expected files only; move it out of the folder")
    files = (file for file in path.rglob("*") if file.is_file())
    visible = tuple(sorted(file for file in files if not is_hidden(file.relative_to(path))))
    if not visible:
        raise DataError(f"{path}: the folder is empty; give a file, or a folder of parts: {FORMATS}")
    return visible


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
            stream.writelines(blocks(file))
    return files._replace(files=copies, compression="none")


def as_utf8(files: InputFiles, folder: Path) -> InputFiles:
    """Write text that the engine cannot read into a folder: without escapes and `sep=` lines, in UTF-8."""
    if files.is_readable:
        return files
    copies = copy_paths(files, folder)
    for name, copy in zip(files.names, copies, strict=True):
        with copy.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(text_lines(files, name))
    return files._replace(files=copies, compression="none", is_readable=True)


def text_lines(files: InputFiles, name: Path) -> Iterator[str]:
    """Yield the lines of one of the user's text files with their ends; the first is empty if it is a `sep=` line.

    Quotes that a backslash escapes are doubled, as csv does.
    """
    with open_file(name) as stream:
        encoding = "utf-8-sig" if files.encoding == "utf-8" else files.encoding
        lines: Iterator[str] = io.TextIOWrapper(stream, encoding=encoding, newline="")
        lines = without_escapes(lines) if name in files.escaped else lines
        first = next(lines, "")
        is_separator = files.format in DELIMITERS and separator_of(first.strip())
        yield "" if is_separator else first
        yield from lines


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


def _detect_format(file: Path, columns: Collection[str], encoding: str | None) -> Format:
    head = next(blocks(file), b"")
    if head.startswith(b"PAR1"):
        return "parquet"
    marked = encoding_of_mark(head) or (encoding if encoding and not is_utf8(head) else "utf-8-sig")
    text = head.decode(marked, errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(head) == BLOCK_BYTES and len(text) > 1:
        text.pop()  # the last line may be incomplete
    sample = [line for line in text[:_NUM_SAMPLE_LINES] if line.strip()]
    if separator := separator_of(text[0]):
        return next((format for format in _SEPARATED if DELIMITERS[format] == separator), "csv")
    name = Path(log_in_archive(file).filename) if compression_of(file) == "zip" else file
    format = format_of_lines(sample, columns, format_of_name(name))
    if format is None:
        raise _unknown_format(file, sample)
    return format


def _unknown_format(file: Path, text: Sequence[str]) -> DataError:
    if not text:
        return DataError(f"{file}: the file is empty; expected {FORMATS}")
    if any("\0" in line for line in text):
        return not_text(file, 1)
    return DataError(
        f"{file}: the format cannot be detected from the name or the first line, {excerpt(text[0])}; set "
        f"prepare.format ({FORMATS})"
    )


def _checked(files: InputFiles, encoding: str | None) -> InputFiles:
    if files.format == "parquet":
        for file in files.files:
            _check_parquet(files, file)
        return files
    checks = {file: check_text(file, files.format, encoding) for file in files.names}
    differ = {file: check.encoding for file, check in checks.items() if check.encoding != "ascii"}
    distinct = set(differ.values())
    if len(distinct) > 1:
        names = ", ".join(f"{file.name} is {encoding}" for file, encoding in differ.items())
        raise DataError(f"{files.path}: its parts differ: {names[:200]}; save all of them as UTF-8")
    files = files._replace(
        encoding=distinct.pop() if distinct else "utf-8",
        escaped=frozenset(file for file, check in checks.items() if check.is_escaped),
    )
    has_separators = any(check.has_separator for check in checks.values())
    is_readable = files.encoding == "utf-8" and files.compression != "zip" and not has_separators and not files.escaped
    return files._replace(is_readable=is_readable)


def _check_parquet(files: InputFiles, file: Path) -> None:
    size = file.stat().st_size if files.compression == "none" else sum(map(len, blocks(file)))
    if not size:
        raise DataError(f"{file}: the file is empty; expected a parquet file with events")
