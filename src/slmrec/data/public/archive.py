"""Safe unpacking of downloaded zip archives."""

import shutil
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from slmrec.errors import DataError
from slmrec.files import one_line, write_atomically

_MAX_UNPACKED_RATIO = 20
"""The files of MovieLens are 3 to 5 times as large as the archives."""


def unpack(archive: Path) -> None:
    """Unpack a zip archive into its folder; existing files stay unchanged.

    Raises:
        DataError: the archive is damaged, unpacks to an implausible size, or contains paths outside its folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _refuse_unsafe(archive, members)
            for member in members:
                _extract(opened, member, archive.parent / member.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: the archive is encrypted
        raise DataError(f"{archive}: cannot be unpacked ({one_line(error)}); remove it and fetch it again") from None


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PureWindowsPath(member.filename)  # handles both slashes and drive letters
        if path.anchor or ".." in path.parts:
            raise DataError(
                f"{archive}: contains {member.filename!r}, a path outside its folder; expected relative paths"
            )
    limit = _MAX_UNPACKED_RATIO * archive.stat().st_size
    total = sum(member.file_size for member in members)
    if total > limit:
        raise DataError(f"{archive}: would unpack to {total:,} bytes, expected at most {limit:,}; do not trust it")


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Extract a member; the reader stops after the number of bytes that the member declares."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, write_atomically(target) as temporary, temporary.open("wb") as stream:
        shutil.copyfileobj(source, stream)
