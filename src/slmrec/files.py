"""Small operations on files: bounded reading, checksums, atomic writes, and text that is safe to print."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_METADATA_BYTES = 2**24
"""Largest file of settings or metadata that is read."""
MAX_DEPTH = 64
"""Deepest nesting of settings or metadata that is read."""
_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

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


def special_file(path: Path) -> str | None:
    """Return what a path is if reading it could wait or never end: a named pipe, a socket or a device; otherwise None.

    Example:
        >>> special_file(Path("/dev/null"))
        'a device'
    """
    try:
        return _SPECIAL_FILES.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):  # the caller reports a path that does not exist
        return None


def read_text(path: Path, max_bytes: int = MAX_METADATA_BYTES) -> str:
    """Read a UTF-8 file of bounded size.

    Args:
        path: the file.
        max_bytes: the largest size that is read.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it is a pipe or a device, too large, or not UTF-8.
    """
    if kind := special_file(path):
        raise ValueError(f"it is {kind}, expected a file; save the content to a file first")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes, the most that is read")
    return path.read_text(encoding="utf-8")


def parse_json(text: str, allow_nan: bool = True) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON text.
        allow_nan: whether `NaN` and `Infinity`, which are no JSON, are read.

    Raises:
        ValueError: the text is not JSON, an object has a key twice, or values are nested too deeply.

    Example:
        >>> parse_json('{"seed": 1, "seed": 2}')
        Traceback (most recent call last):
        ...
        ValueError: the key 'seed' occurs twice
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=None if allow_nan else _refuse_constant,
            parse_float=None if allow_nan else _finite,
        )
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = (one for one in level if isinstance(one, dict | list))
        level = [below for one in containers for below in (one.values() if isinstance(one, dict) else one)]
    if level:
        raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep")
    return value


def read_json(path: Path, allow_nan: bool = True) -> Any:
    """Return the value of a JSON file of bounded size.

    Args:
        path: the file.
        allow_nan: as in `parse_json`.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), allow_nan)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:100]!r} occurs twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text; after an interruption the file has its old content."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object; after an interruption the file has its old content."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def cache_folder() -> Path:
    """Return the folder of caches: `$XDG_CACHE_HOME/slmrec`, by default `~/.cache/slmrec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slmrec"
