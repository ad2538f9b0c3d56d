"""Downloads of public files: resumed after interruptions, and verified."""

import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from slmrec.data.public.archive import unpack
from slmrec.data.public.registry import Algorithm, Checksum, RemoteFile
from slmrec.errors import DataError
from slmrec.files import one_line, read_json, write_atomically

RECORD = "checksums.json"
"""A file in the download folder with the SHA-256 of files without a published checksum."""

OnBytes = Callable[[int, int | None], None]
"""Callback that receives the number of downloaded bytes, and the total number if it is known."""

_TIMEOUT_SECONDS = 30.0
"""Limit for the connection and for each wait for data."""
_PAUSES_SECONDS = (1.0, 2.0, 4.0)
"""Pauses before the second, third and fourth attempt; each attempt resumes the previous one."""
_BLOCK_BYTES = 2**18
_BUSY = (408, 429)
"""Status codes that justify another attempt, in addition to 5xx."""
_NO_SUCH_RANGE = 416


class Download(NamedTuple):
    """A complete and verified file."""

    path: Path
    checksum: Checksum
    compared_with: str | None
    """The origin of the checksum that matches; None if there was no checksum to compare with."""
    fetched: bool
    """False if the file existed already."""


class _DroppedError(Exception):
    """An attempt failed, and another one may succeed."""


@dataclass(frozen=True)
class _Part:
    """An incomplete file, and beside it a note with the version and the length of the complete file."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.version")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> tuple[str, int] | None:
        """Return the server's version of the file and its length; None if the download cannot be resumed."""
        if not self.note.exists():
            return None
        note = re.fullmatch(r"(\d+) (.+)\n", self.note.read_text(encoding="utf-8"))
        return (note[2], int(note[1])) if note and 0 < self.size() <= int(note[1]) else None

    def start(self, version: str | None, total: int | None) -> None:
        self.path.write_bytes(b"")
        known = version is not None and total is not None
        self.note.write_text(f"{total} {version}\n" if known else "", encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _ignore(done: int, total: int | None) -> None:
    pass


def download(file: RemoteFile, folder: Path, on_bytes: OnBytes = _ignore) -> Download:
    """Download a file unless it exists, verify its checksum, and unpack a zip archive.

    The file is named `FILE.part` until it is complete; a call after an interruption requests only the rest. If the
    publisher states no checksum, the first call records the SHA-256 in `checksums.json`, and later calls compare with
    it.

    Args:
        file: the file to download.
        folder: the destination; it is created if necessary.
        on_bytes: called with the progress.

    Raises:
        DataError: the file cannot be downloaded or written, or its checksum differs; existing files are never changed.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target, part = folder / file.name, _Part(folder / f"{file.name}.part")
        fetched = not target.exists()
        if fetched:
            _retrieve(file, part, on_bytes)
        checksum, compared_with = _checked(file, folder, part.path if fetched else target, fetched)
        if fetched:
            part.path.replace(target)
            part.remove()
        if target.suffix == ".zip":
            unpack(target)
    return Download(target, checksum, compared_with, fetched)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Convert errors of the disk to a `DataError`; network errors are handled before."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename or folder}: cannot be written or read ({reason}); make room or give another --output, "
            "and run the same command again to resume"
        ) from None


def _retrieve(file: RemoteFile, part: _Part, on_bytes: OnBytes) -> None:
    """Repeat attempts until the file is complete."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            _attempt(file, part, on_bytes)
            return
        except _DroppedError as error:
            if pause is None:
                raise DataError(
                    f"{file.address}: {error}, at the last of {len(_PAUSES_SECONDS) + 1} attempts; check the network "
                    "or try later: the same command resumes the download"
                ) from None
            time.sleep(pause)


def _attempt(file: RemoteFile, part: _Part, on_bytes: OnBytes) -> None:
    """Request the missing part of the file once."""
    known = part.version()
    if known and part.size() == known[1]:
        return
    with _open(file.address, _range(part.size(), known[0]) if known else {}) as response:
        if known and response.status in {206, _NO_SUCH_RANGE}:
            total: int | None = known[1]
            _check_range(response.headers, part, known)
        else:
            total = _length(file, response.headers)
            part.start(_version(response.headers), total)
        _append(response, part, total, on_bytes)
    if total is not None and part.size() != total:
        raise _DroppedError(f"the connection ended after {part.size():,} of {total:,} bytes")


def _range(start: int, version: str) -> dict[str, str]:
    """Return headers that request the rest of the same version, or all of another one."""
    return {"Range": f"bytes={start}-", "If-Range": version}


def _check_range(headers: Mapping[str, str], part: _Part, known: tuple[str, int]) -> None:
    version, total = known
    given = headers.get("Content-Range", "")
    if _version(headers) not in (None, version) or not re.fullmatch(rf"bytes {part.size()}-\d+/({total}|\*)", given):
        part.remove()
        raise _DroppedError(f"the server sent {given or 'another range of bytes'!r}, not the rest of the same file")


def _version(headers: Mapping[str, str]) -> str | None:
    """Return the value for If-Range: a strong ETag, or else the modification date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _length(file: RemoteFile, headers: Mapping[str, str]) -> int | None:
    given = headers.get("Content-Length")
    if given and file.num_bytes and int(given) != file.num_bytes:
        raise DataError(
            f"{file.address}: has {int(given):,} bytes, expected {file.num_bytes:,}: it differs from the published "
            "file; download it by hand if you trust it"
        )
    return int(given) if given else file.num_bytes


def _append(response: Any, part: _Part, total: int | None, on_bytes: OnBytes) -> None:
    done = part.size()
    with part.path.open("ab") as stream:
        on_bytes(done, total)
        while block := _read(response):
            stream.write(block)
            done += len(block)
            on_bytes(done, total)


def _read(response: Any) -> bytes:
    try:
        block: bytes = response.read1(_BLOCK_BYTES)
    except (OSError, HTTPException) as error:
        raise _DroppedError(f"the connection broke ({error or type(error).__name__})") from None
    return block


def _open(address: str, headers: dict[str, str]) -> Any:
    request = Request(address, headers={"User-Agent": "slmrec", **headers})
    try:
        response = urlopen(request, timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code == _NO_SUCH_RANGE and "Range" in headers:
            return error  # the file on the server has become shorter
        raise _refused(address, error) from None
    except URLError as error:
        raise _unreachable(address, error.reason) from None
    except (OSError, HTTPException) as error:
        raise _unreachable(address, error) from None
    _check_address(address, response)
    return response


def _check_address(address: str, response: Any) -> None:
    """Reject web pages, to which the addresses of moved files often lead, and insecure redirects."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        fault = f"leads to a web page, {response.url}, expected the file"
    elif address.startswith("https:") and not response.url.startswith("https:"):
        fault = f"leads to {response.url}, expected https"
    else:
        return
    response.close()
    raise DataError(f"{address}: {fault}; nothing was downloaded: see the page of the terms above")


def _refused(address: str, error: HTTPError) -> Exception:
    if error.code in _BUSY or error.code >= 500:
        return _DroppedError(f"the server answered {error.code} {error.reason}")
    return DataError(
        f"{address}: the server answered {error.code} {error.reason}, expected the file; it may have moved: see the "
        "page of the terms above"
    )


def _unreachable(address: str, reason: object) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"{address}: the server's certificate cannot be trusted ({reason.verify_message}); nothing was downloaded, "
            "try again when its publisher has renewed it"
        )
    if isinstance(reason, ConnectionError | TimeoutError | HTTPException):
        return _DroppedError(f"no connection ({reason or type(reason).__name__})")
    return DataError(
        f"{address}: cannot be reached ({one_line(reason)}); check the network: the same command resumes the download"
    )


def _checked(file: RemoteFile, folder: Path, path: Path, fetched: bool) -> tuple[Checksum, str | None]:
    """Return the checksum and the origin of the expected one; a mismatch removes a new file, not an existing one."""
    record = _read_record(folder)
    recorded = Checksum("sha256", record[file.name]) if file.name in record else None
    expected = file.checksum or recorded
    checksum = _checksum(path, expected.algorithm if expected else "sha256")
    compared_with = "its publisher" if file.checksum else RECORD if recorded else None
    if expected and checksum != expected:
        _raise_checksum_error(file, path, f"{checksum}, expected {expected} of {compared_with}", fetched)
    if not expected:
        _write_record(folder, {**record, file.name: checksum.digest})
    return checksum, compared_with


def _raise_checksum_error(file: RemoteFile, path: Path, difference: str, fetched: bool) -> None:
    if fetched:
        _Part(path).remove()
        advice = "the downloaded file was removed; try again"
        if not file.checksum:
            advice += f", or remove the entry from {RECORD} if the publisher has a new version"
        raise DataError(f"{file.address}: its checksum is {difference}; {advice}")
    raise DataError(f"{path}: its checksum is {difference}; move it away, and the same command downloads it again")


def _checksum(path: Path, algorithm: Algorithm) -> Checksum:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, partial(hashlib.new, algorithm, usedforsecurity=False))
    return Checksum(algorithm, digest.hexdigest())


def _read_record(folder: Path) -> dict[str, str]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is not a table of checksums ({error}); correct or remove it") from None


def _write_record(folder: Path, record: dict[str, str]) -> None:
    with write_atomically(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
