"""Encodings and dialects of text files that need a copy in UTF-8 before the engine reads them."""

import codecs
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from slmrec.data.logs.compression import blocks
from slmrec.data.logs.formats import DELIMITERS, FORMATS, QUOTED, Format
from slmrec.errors import DataError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR_LINE = re.compile(r"\ufeff?\"?sep=(.|\\t)\"?\s*", re.IGNORECASE)
_ESCAPE = re.compile(r"\\([\\\"])")
_WINDOWS = re.compile(rb"[\x80-\x9f]")
_UNDEFINED_IN_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_EXCERPT = 2**16
_MAX_SEPARATOR_LINE = 16


def encoding_of_mark(head: bytes) -> str | None:
    """Return the encoding that the byte-order mark of a file names; None for UTF-8, and without a mark."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def likely_encoding(block: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8.

    Example:
        >>> likely_encoding("Café".encode("latin-1")), likely_encoding("5 €".encode("cp1252"))
        ('latin-1', 'cp1252')
    """
    if b"\0" in block:
        odd, even = (block[start:_EXCERPT:2].count(b"\0") for start in (1, 0))
        return "utf-16-le" if odd > even else "utf-16-be"
    if not _WINDOWS.search(block):
        return "latin-1"
    return "gb18030" if _UNDEFINED_IN_WINDOWS.search(block) else "cp1252"


def separator_of(line: str) -> str | None:
    """Return the delimiter of a first line such as `sep=;`, which spreadsheets write and read; None for other lines."""
    match = _SEPARATOR_LINE.fullmatch(line)
    return match and match[1].replace("\\t", "\t")


def is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8 text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def has_escaped_quote(text: str, delimiter: str) -> bool:
    r"""Return whether a quoted field has a quote after a backslash that does not end the field, as it would in csv.

    Example:
        >>> has_escaped_quote(r'1;"5\" disk"', ";"), has_escaped_quote(r'1;"c:\";2', ";")
        (True, False)
    """
    end = re.escape(delimiter)
    field = rf'(?:^|{end})"(?:[^"\\\n]|\\[^"])*\\"(?:[^"\r\n{end}]|"(?:[{end}\r\n]|$))'
    return re.search(field, text, re.MULTILINE) is not None


def without_escapes(lines: Iterable[str]) -> Iterator[str]:
    r"""Write quotes that are escaped by a backslash as csv does.

    Example:
        >>> list(without_escapes(['"a \\"b\\" c:\\\\d"']))
        ['"a ""b"" c:\\d"']
    """
    return (_ESCAPE.sub(lambda match: '""' if match[1] == '"' else "\\", line) for line in lines)


class TextCheck(NamedTuple):
    """The result of reading a text file to its end."""

    encoding: str
    """`ascii` if other encodings have the same bytes."""
    has_separator: bool
    is_escaped: bool


def check_text(file: Path, format: Format, encoding: str | None) -> TextCheck:
    """Read a text file to its end, in UTF-8 if it has no other byte-order mark, or else in the given encoding.

    Raises:
        DataError: the file is empty, or it is not text in these encodings.
    """
    marked = encoding_of_mark(next(blocks(file), b""))
    try:
        return _read_text(file, format, marked or "utf-8")
    except _NotTextError as error:
        if marked is None and encoding is None and format in ("dat", "psv") and error.byte != b"\0":
            encoding = "latin-1"  # MovieLens, with :: or | between its fields
        if marked is not None or encoding is None:
            raise _unreadable(file, error, marked) from None
    try:
        return _read_text(file, format, encoding)
    except _NotTextError as error:
        raise _unreadable(file, error, encoding) from None


MAX_LINE = 2**24
"""Longest line of a text file, in characters; some readers hold a whole line."""


class _NotTextError(Exception):
    """A byte that is not text in the encoding."""

    def __init__(self, line: int, byte: bytes, block: bytes) -> None:
        super().__init__()
        self.line, self.byte, self.block = line, byte, block


def _read_text(file: Path, format: Format, encoding: str) -> TextCheck:
    decoder = codecs.getincrementaldecoder(encoding)()
    line_ends = io.IncrementalNewlineDecoder(None, translate=False)
    line, has_text, is_ascii, is_escaped, rest, first = 1, False, encoding == "utf-8", False, "", ""
    length = 0
    delimiter = DELIMITERS.get(format, ",")
    for block in itertools.chain(blocks(file), [b""]):
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise _NotTextError(line, error.object[error.start : error.start + 1], block) from None
        except UnicodeError:  # without the byte-order mark that the encoding needs
            raise _NotTextError(line, block[:1], block) from None
        if "\0" in text:
            raise _NotTextError(line + text[: text.index("\0")].count("\n"), b"\0", block)
        if format == "sequences":
            line_ends.decode(text)
        if format in QUOTED and not is_escaped:
            *_, start = (rest + text).rpartition("\n")
            is_escaped = '\\"' in text and has_escaped_quote(rest + text, delimiter)
            rest = start[:_EXCERPT]
        first += text[: max(0, _MAX_SEPARATOR_LINE - len(first))]
        line += text.count("\n")
        line_end = max(text.rfind("\n"), text.rfind("\r"))
        length = length + len(text) if line_end < 0 else len(text) - line_end
        if length > MAX_LINE:
            raise DataError(f"{file}: line {line} is longer than {MAX_LINE:,} characters; write one row a line")
        is_ascii = is_ascii and text.isascii()
        has_text = has_text or bool(text.strip("\ufeff \t\r\n"))
    if not has_text:
        raise DataError(f"{file}: the file is empty; expected {FORMATS}")
    if isinstance(line_ends.newlines, tuple):
        ends = " and ".join(map(repr, line_ends.newlines))
        raise DataError(f"{file}: lines end in {ends}; expected one kind of line end; convert it with dos2unix")
    has_separator = format in DELIMITERS and separator_of(first.splitlines()[0]) is not None
    return TextCheck("ascii" if is_ascii else encoding, has_separator, is_escaped)


def not_text(file: Path, line: int) -> DataError:
    """Return the error of a file with zero bytes."""
    return DataError(
        f"{file}: line {line}: byte b'\\x00' is not text; save the file as UTF-8 text, or set prepare.format if the "
        "file is not text"
    )


def _unreadable(file: Path, error: _NotTextError, encoding: str | None) -> DataError:
    where = f"{file}: line {error.line}: byte {error.byte!r} is not"
    if encoding is not None:
        return DataError(f"{where} {encoding}; set prepare.encoding to the encoding of the file, or save it as UTF-8")
    if error.byte == b"\0" and error.block.count(b"\0") < len(error.block) // 4:
        return not_text(file, error.line)
    return DataError(
        f"{where} UTF-8; set prepare.encoding={likely_encoding(error.block)} (or another encoding), or save the file "
        "as UTF-8 text"
    )
