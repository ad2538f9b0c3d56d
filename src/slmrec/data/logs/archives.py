"""ZIP archives with one log, which is read without unpacking the archive."""

import zipfile
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from slmrec.errors import DataError
from slmrec.files import printable

_WORKBOOKS = {"xl/workbook.xml": "an Excel workbook", "content.xml": "a workbook or document"}
_ENCRYPTED = 0x1
_PACKED = (".zip", ".gz", ".zst", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".xlsx")
_MAX_SHOWN = 3


def log_in_archive(file: Path) -> zipfile.ZipInfo:
    """Return the only file of an archive; folders and hidden files, also those of macOS, do not count.

    Raises:
        DataError: the archive is damaged or encrypted, or it does not hold exactly one file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{file}: the archive is truncated or damaged ({error}); copy or download it again") from None
    names = {member.filename for member in members}
    if kind := next((kind for name, kind in _WORKBOOKS.items() if name in names), None):
        raise DataError(f"{file}: is {kind}, expected a text table; save the sheet with the log as csv")
    logs = [member for member in members if not member.is_dir() and not is_hidden(PurePosixPath(member.filename))]
    if len(logs) != 1:
        shown = ", ".join(printable(member.filename) for member in logs[:_MAX_SHOWN])
        found = f"{len(logs)} files ({shown}{', ...' if len(logs) > _MAX_SHOWN else ''})" if logs else "no file"
        raise DataError(f"{file}: the archive holds {found}, expected one log; unpack it, and give the file of the log")
    name = printable(logs[0].filename)
    if logs[0].flag_bits & _ENCRYPTED:
        raise DataError(f"{file}: {name} in the archive is encrypted; unpack it, and give the file")
    if logs[0].filename.lower().endswith(_PACKED):
        raise DataError(f"{file}: {name} in the archive is packed itself; unpack the archive, and give the file")
    return logs[0]


def open_log(file: Path) -> IO[bytes]:
    """Open the log in an archive for reading.

    Raises:
        DataError: as for `log_in_archive`, or its compression is unknown.
    """
    member = log_in_archive(file)
    try:
        return zipfile.ZipFile(file).open(member)
    except NotImplementedError as error:
        raise DataError(f"{file}: {error}; unpack the archive, and give the file of the log") from None


def is_hidden(path: PurePath) -> bool:
    """Return whether a file, or a folder above it, is hidden or holds metadata of another program."""
    return any(part.startswith((".", "_")) for part in path.parts)
