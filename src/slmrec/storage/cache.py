"""Copies of remote files and folders in a cache on this machine, and their names in messages and files."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmrec.errors import SlmrecError, StorageError
from slmrec.files import cache_folder
from slmrec.processes import main_first
from slmrec.storage.remote import MissingError, Remote, is_uri, refuse_mangled

if TYPE_CHECKING:
    from slmrec.config import Config

_KEPT_VERSIONS = 2
"""Versions of a remote file or folder that stay in the cache."""
_TRIES = 3
_PLACES = {"input", "items", "item_vectors", "teacher", "lists", "source"}
"""Settings that are files or folders."""
_PLACES_OF_LOGS = {"input", "items"}
_names: dict[str, str] = {}
"""URIs by the paths of their copies."""


def cached(*parts: str) -> Path:
    """Return a path in the cache of remote files: `$XDG_CACHE_HOME/slmrec/remote`, by default below `~/.cache`."""
    return cache_folder().resolve().joinpath("remote", *parts)


def digest(*texts: str) -> str:
    """Return a short hash, for names in the cache."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def local(source: str | Path) -> Path:
    """Return a path on this machine: the path itself, or that of a copy of the file or folder that a URI names.

    The copy is made anew when the size, checksum or time of a file has changed. Files and folders whose names begin
    with a dot are left out.

    Args:
        source: Path or URI.

    Raises:
        StorageError: There is no such file, or the store refuses or cannot be reached.

    Example:
        >>> local("file:///data/log.csv").as_posix()
        '/data/log.csv'
    """
    if not is_uri(source):
        path = Path(source)
        refuse_mangled(path)
        return path
    remote = Remote(str(source))
    path = remote.path or _copy(remote)
    if remote.path is None:
        name_copy(path, remote.uri)
    return path


def refreshed(path: Path) -> Path:
    """Return a new copy if a path is a copy of a remote file or folder that has changed; otherwise the path itself.

    Raises:
        StorageError: The store refuses or cannot be reached.
    """
    uri = _names.get(str(path))
    return path if uri is None else local(uri)


def name_copy(path: Path, uri: str) -> None:
    """Note the URI that `named` shows in place of a path."""
    _names[str(path)] = uri


def named(value: Any) -> Any:
    """Return a text, or settings, with the paths of copies replaced by the URIs that they are copies of."""
    if isinstance(value, dict):
        return {key: named(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(named, value))
    if not isinstance(value, str):
        return value
    for path in sorted(_names, key=len, reverse=True):
        value = value.replace(path, _names[path])
    return value


@contextmanager
def uris_named() -> Iterator[None]:
    """Show URIs in place of the paths of their copies in the errors of a function."""
    try:
        yield
    except SlmrecError as error:
        message = named(str(error))
        if message == str(error):
            raise
        raise type(error)(message) from None


def localized(config: "Config", required: bool = False) -> "Config":
    """Return settings in which URIs are replaced by copies of what they name; `named` turns them back.

    The log stays a URI for an engine other than DuckDB, which reads it itself.

    Args:
        config: The settings.
        required: Refuse a log or a table of items that is no longer there; finished data sets do not need them.

    Raises:
        StorageError: There is no such file, or the store refuses or cannot be reached.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    places = _PLACES if config.prepare.engine == "duckdb" else _PLACES - {"input"}
    with main_first():  # processes of one machine share the copies
        replaced = _replaced(values, places, set() if required else _PLACES_OF_LOGS)
    return config if replaced == values else type(config).model_validate(replaced)


def _replaced(value: Any, places: set[str], optional: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    replaced = {}
    for key, below in value.items():
        replaced[key] = _replaced(below, places, optional)
        if key in places and is_uri(below):
            with suppress(*([MissingError] if key in optional else [])):
                replaced[key] = str(local(below))
    return replaced


def _copy(remote: Remote) -> Path:
    versions = cached("files", digest(remote.uri))
    for _ in range(_TRIES):
        files = _visible(remote)
        if not files:
            raise remote.missing()
        target = versions / digest(*(part for item in sorted(files.items()) for part in item)) / remote.name
        if target.exists():
            os.utime(target.parent)
            return target
        partial = versions / f".{uuid.uuid4().hex}"
        try:
            for name in files:
                remote.download(name, partial / remote.name / name)
            if _visible(remote) != files:
                continue  # another process wrote at the same time
            try:
                partial.rename(target.parent)
            except OSError:
                if not target.exists():  # otherwise another process was faster
                    raise
            _prune(versions)
            return target
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise StorageError(f"{remote.uri}: is being written, and changed while it was read; try again when it is complete")


def _visible(remote: Remote) -> dict[str, str]:
    return {name: version for name, version in remote.files().items() if "/." not in f"/{name}"}


def _prune(versions: Path) -> None:
    """Remove all but the newest versions of a file or folder."""
    found = [path for path in versions.iterdir() if not path.name.startswith(".")]
    for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT_VERSIONS:]:
        shutil.rmtree(old, ignore_errors=True)
