"""One remote file or folder, through fsspec; every fault of a store becomes a `StorageError`."""

import errno
import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slmrec.config.secrets import with_secrets, without_secrets, without_url
from slmrec.errors import SlmrecError, StorageError
from slmrec.files import one_line, write_atomically

_LOG = logging.getLogger(__name__)
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.*", re.DOTALL)
_MANGLED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_LOCAL = {"file", "local"}
_S3 = {"s3", "s3a"}
_EXTRAS = {**dict.fromkeys(_S3, "s3"), "gs": "gcs", "gcs": "gcs"}
"""Extras of slmrec by scheme. URIs of these stores begin with a bucket and hold no user."""
_WHOLE_OBJECTS = {*_EXTRAS, "abfs", "abfss", "az", "memory"}
"""Schemes of stores in which an object appears when its upload is complete."""
_EXCLUSIVE = {*_EXTRAS, "memory"}
"""Schemes of stores that can create an object only if it is absent."""
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "modified", "created")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_REFUSED = re.compile(r"credential|access.?key|signature|forbidden|denied|unauthorized|token", re.IGNORECASE)


def is_uri(source: object) -> bool:
    """Return whether a source is a URI.

    Example:
        >>> is_uri("s3://bucket/log.csv"), is_uri("log.csv")
        (True, False)
    """
    return isinstance(source, str) and _URI.fullmatch(source) is not None


def refuse_mangled(path: Path) -> None:
    """Refuse a `pathlib.Path` that was made from a URI, whose slashes it merges.

    Raises:
        StorageError: It was.
    """
    match = _MANGLED.match(str(path))
    if match and not path.exists() and match[1].lower() in _protocols():
        raise StorageError(f"{path}: a pathlib.Path cannot hold a URI; give it as text, such as {match[1]}://...")


class MissingError(StorageError):
    """There is no such remote file or folder."""


class Remote:
    """A file or folder of a store.

    Args:
        uri: The URI. Passwords and tokens in it serve for the connection, and are part of no message or file.

    Raises:
        StorageError: The scheme is unknown, its package is not installed, or the store cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri: str = without_secrets(uri)
        self.scheme = uri.partition("://")[0].lower()
        self._original = self.scheme + with_secrets(self.uri)[len(self.scheme) :]
        import fsspec

        if self.scheme not in _protocols():
            raise StorageError(
                f"{self.uri}: unknown scheme {self.scheme!r}; expected s3://, gs://, hdfs://, file:// or another of "
                "fsspec, or a path"
            )
        bucket, slash, key = self.uri.partition("://")[2].partition("/")
        if self.scheme in _EXTRAS and "@" in bucket:
            raise StorageError(
                f"{self.scheme}://***@{bucket.rpartition('@')[2]}{slash}{key}: names a user, expected a bucket; give "
                "credentials in the environment or the files of the store's own tools"
            )
        options: dict[str, Any] = {}
        if self.scheme in _S3 and "config_kwargs" not in fsspec.config.conf.get(self.scheme, {}):
            options["config_kwargs"] = _TIMEOUTS
        with self._reported():
            self._fs, root = fsspec.url_to_fs(self._original, **options)
        self._root: str = root.rstrip("/")

    @property
    def path(self) -> Path | None:
        """Path on this machine, of `file://`; None for other stores."""
        return Path(self._root or "/") if self.scheme in _LOCAL else None

    @property
    def name(self) -> str:
        """Last part of the URI, as a file name of bounded length."""
        last = re.sub(r"[^\w.-]", "_", self._root.rpartition("/")[2]).lstrip(".")
        return last[-100:] or "root"

    def parent(self) -> "Remote":
        """Return the folder that it is in."""
        return Remote(self._original.partition("?")[0].rstrip("/").rpartition("/")[0])

    def files(self) -> dict[str, str]:
        """Return what identifies the version of each file, by its path below the folder; that of a file itself is "".

        Raises:
            StorageError: The store refuses or cannot be reached, or a name is not that of a file in the folder.
        """
        with self._reported():
            self._fs.invalidate_cache()
            try:
                info = self._fs.info(self._root)
                if info["type"] == "file":
                    return {"": _version(info)}
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        names = {path[len(self._root) :].removeprefix("/"): info for path, info in found.items()}
        is_marker = {name for name in names if not name or name.endswith("/")}  # empty objects that stand for folders
        files = {name: _version(names[name]) for name in names.keys() - is_marker if names[name]["type"] == "file"}
        for name in files:
            if not _is_safe(name):
                raise StorageError(
                    f"{self.uri}: has a file named {name[:200]!r}, which is no path in a folder; rename it"
                )
        return files

    def download(self, name: str, target: Path) -> None:
        """Write a file of the folder, or the file itself (""), to a path on this machine."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(target) as temporary, self._reported():
            self._fs.get_file(self._at(name), str(temporary))

    def upload(self, source: Path, name: str) -> None:
        """Write a file of this machine into the folder, or as the file itself (""); it appears when it is complete."""
        with self._reported():
            target = self._at(name)
            if self.scheme in _WHOLE_OBJECTS:
                self._fs.put_file(str(source), target)
                return
            folder, _, last = target.rpartition("/")
            temporary = f"{folder}/.{last}.{uuid.uuid4().hex}.partial"
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.put_file(str(source), temporary)
            with suppress(FileNotFoundError):
                self._fs.rm_file(target)
            self._fs.mv(temporary, target)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the folder."""
        with self._reported():
            if self.scheme not in _WHOLE_OBJECTS:
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._at(name), content)

    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there."""
        with self._reported(), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file of the folder; None if there is none."""
        with self._reported():
            try:
                content: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return content

    def create(self, name: str, content: bytes) -> bool:
        """Write a file of the folder unless there is one, in one operation of the store; return whether it was written.

        Stores that have no such operation are first asked for the file.
        """
        if self.scheme not in _EXCLUSIVE:
            _LOG.warning(
                "%s: its store has no exclusive writes; make sure that no other command writes there", self.uri
            )
            if self.read(name) is not None:
                return False
            self.write(name, content)
            return True
        with self._reported():
            try:
                self._fs.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except Exception as error:  # stores that are accessed by HTTP have errors of their own
                if not re.search(r"pre-?condition|conditional ?request|\b(409|412)\b", str(error), re.IGNORECASE):
                    raise
                return False
        return True

    def missing(self) -> MissingError:
        """Return the error that there is no such file or folder."""
        return MissingError(f"{self.uri}: no such file, folder or bucket; check the name, and the account of the store")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except SlmrecError:
            raise
        except FileNotFoundError:
            raise self.missing() from None
        except ImportError as error:
            extra = _EXTRAS.get(self.scheme)
            remedy = f"; run: pip install 'slmrec[{extra}]'" if extra else ""
            raise StorageError(
                f"{self.uri}: needs a package that is not installed ({one_line(error)}){remedy}"
            ) from None
        except Exception as error:  # stores have no common base class of errors
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise
            if self.scheme == "hdfs" and "Unable to load lib" in str(error):
                raise StorageError(
                    f"{self.uri}: needs Java and the native library of Hadoop ({one_line(error, 80)}); set JAVA_HOME, "
                    "HADOOP_HOME and CLASSPATH"
                ) from None
            reason = f"{type(error).__name__}: {without_url(one_line(error), self._original)}"
            if isinstance(error, PermissionError) or _REFUSED.search(reason):
                raise StorageError(
                    f"{self.uri}: access refused ({reason}); give credentials that may do this, in the environment or "
                    "the files of the store's own tools"
                ) from None
            raise StorageError(
                f"{self.uri}: cannot be reached, read or written ({reason}); check the address and the network, then "
                "run the same command again"
            ) from None


def _protocols() -> list[str]:
    import fsspec  # when it is needed, since commands on local files do not need it

    return fsspec.available_protocols()  # type: ignore[no-any-return]


def _version(info: dict[str, Any]) -> str:
    """Return size and checksum of a file, or its time where the store knows no checksum."""
    stamp = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    return f"{info.get('size')} {stamp}"


def _is_safe(name: str) -> bool:
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def place_of(output: str | Path) -> "Path | Remote":
    """Return the path of an output on this machine, or the remote place of a URI.

    Raises:
        StorageError: The URI is invalid, or a path is a URI that lost a slash.
    """
    if not is_uri(output):
        refuse_mangled(path := Path(output))
        return path
    remote = Remote(str(output))
    return remote if remote.path is None else remote.path
