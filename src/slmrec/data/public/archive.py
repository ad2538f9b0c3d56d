"""Zip archives from elsewhere, unpacked with care."""

import shutil
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from slmrec.errors import DataError

_MAX_UNPACKED_RATIO = 20
"""Of MovieLens' archives the files are 3 to 5 times as large as the archive."""


def unpack(archive: Path) -> None:
    """Puts the files of a zip archive beside it; those that are there already stay as they are.

    Raises:
        DataError: the archive is damaged, too large for what it says it is, or would write elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _refuse_unsafe(archive, members)
            for member in members:
                _extract(opened, member, archive.parent / member.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and fetch it again") from None


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PureWindowsPath(member.filename)  # knows both slashes, and drives
        if path.anchor or ".." in path.parts:
            raise DataError(f"{archive}: holds {member.filename!r}, which lies elsewhere; expected paths below it")
    limit = _MAX_UNPACKED_RATIO * archive.stat().st_size
    total = sum(member.file_size for member in members)
    if total > limit:
        raise DataError(f"{archive}: would unpack to {total:,} bytes, expected at most {limit:,}; do not trust it")


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Never more bytes than the member declares: the reader stops there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        with opened.open(member) as source, part.open("wb") as stream:
            shutil.copyfileobj(source, stream)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
