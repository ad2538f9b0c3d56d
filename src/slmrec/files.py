"""Small operations on files, and text of files that is safe to print."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 control characters, line separators, marks that change the text direction, and lone surrogates."""


def printable(text: str) -> str:
    r"""Replace characters that control a terminal, break lines or reverse text by their escaped form.

    Example:
        >>> print(printable("a title\x1b[2J"))
        a title\x1b[2J
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: object, limit: int = 300) -> str:
    r"""Return a text, or the message of an error, on one printable line.

    Args:
        text: a string or an exception.
        limit: the maximum number of characters.

    Example:
        >>> one_line(ValueError("first line\n  second line"))
        'first line second line'
    """
    return printable(" ".join(str(text).split()))[:limit]


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file as a hexadecimal string; the file is read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside a file, and move it to the file's path when the context ends without an error.

    The temporary file keeps the suffix, since some writers choose the format by it. It is removed after an error, and
    the file that was there before then stays as it is.

    Args:
        path: the file to write; its folder exists.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with write_atomically(Path(folder) / "counts.json") as temporary:
        ...         _ = temporary.write_text("{}")
        ...     (Path(folder) / "counts.json").read_text()
        '{}'
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
