"""Output folders: written aside, put in place whole, and recovered after an interruption."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slmrec.errors import CheckpointError
from slmrec.files import one_line, read_json, write_json

RULES = "rules.json"
"""Standing rules of a model folder."""
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.EIO),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of writing."""


@contextmanager
def disk_errors_reported(target: Path) -> Iterator[None]:
    """Turn errors of a full, read-only or damaged disk into an error of the user.

    Args:
        target: The file or folder that is written.

    Raises:
        CheckpointError: The disk is full, the target cannot be written, or another file cannot be read.
    """
    try:
        yield
    except Exception as error:  # safetensors and others report errors of the disk as their own
        number = getattr(error, "errno", None) or _os_error(error)
        if number not in _DISK_ERRORS:
            raise
        name = getattr(error, "filename", None)
        raise CheckpointError(_disk_error(number, None if name is None else Path(os.fsdecode(name)), target)) from None


def _disk_error(number: int, place: Path | None, target: Path) -> str:
    reason = os.strerror(number)
    if number == errno.EIO:
        return f"{place or target}: {reason} while reading or writing; check the disk; existing results are unchanged"
    if place is not None and number not in _FULL and not _is_written(place.absolute(), target.absolute()):
        return f"{place}: cannot be read ({reason}); grant permission, or name another file"
    return (
        f"{place or target}: {reason}; free space or grant permission, or choose another --output; existing results "
        "are unchanged"
    )


def _is_written(place: Path, target: Path) -> bool:
    """Return whether a path is the target, a part of it, a folder that it is in, or a hidden file beside it."""
    is_beside = place.name.startswith(".") and place.parent in target.parents
    return is_beside or place == target or target in place.parents or place in target.parents


def _os_error(error: Exception) -> int | None:
    """Return the number of the system's error in a message of a library written in Rust, or of `shutil`."""
    found = re.search(r"(?:\(os error |\[Errno )(\d+)[)\]]", str(error))
    return None if found is None else int(found[1])


@contextmanager
def folder_in_place(target: Path, replaced: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the context ends without an error, and is removed otherwise.

    Args:
        target: The final folder.
        replaced: True if an existing folder is replaced.

    Raises:
        CheckpointError: The target exists and must not be replaced, or the disk is full.
    """
    with disk_errors_reported(target):
        finish_replacement(target)
        if not replaced and target.exists() and not is_empty_folder(target):
            raise CheckpointError(f"{target} exists; choose another --output, or remove it: nothing was changed")
        partial = partial_folder(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_folder(target: Path) -> Path:
    """Return the temporary folder beside a target.

    Example:
        >>> partial_folder(Path("out/distill")).as_posix()
        'out/.distill.partial'
    """
    return target.parent / f".{target.name}.partial"


def is_empty_folder(folder: Path) -> bool:
    """Return whether a path is a folder without content."""
    return folder.is_dir() and not any(folder.iterdir())


def link_in_place(link: Path, target: Path) -> None:
    """Let a link lead to a folder, replacing what the link was; a kill at any moment leaves the old or the new one.

    A link to a folder beside or below it is relative, so both may be moved together. Where the file system has no
    links, the folder is copied. A copy of the present state of the target stays as it is.

    Args:
        link: The link.
        target: The folder to which it leads.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     (Path(folder) / "distill").mkdir()
        ...     link_in_place(Path(folder) / "best", Path(folder) / "distill")
        ...     (Path(folder) / "best").readlink().as_posix()
        'distill'
    """
    with disk_errors_reported(link):
        finish_replacement(link)
        home, place = link.absolute().parent, target.absolute()
        if place.is_relative_to(home):
            place = place.relative_to(home)
        if link.readlink() == place if link.is_symlink() else _is_copy(link, target):
            return
        partial = partial_folder(link)
        _remove(partial)
        try:
            partial.symlink_to(place, target_is_directory=True)
        except (OSError, NotImplementedError):
            _copy(target, partial)
        if partial.is_symlink() and (link.is_symlink() or not link.exists()):
            partial.replace(link)
        else:
            put_in_place(partial, link)


def _is_copy(folder: Path, target: Path) -> bool:
    fingerprint = read_record(folder).get("fingerprint")
    return fingerprint is not None and fingerprint == read_record(target).get("fingerprint")


def _copy(target: Path, partial: Path) -> None:
    """Copy a folder, with a record if it has none, so that the copy is known as an output of slmrec."""
    shutil.copytree(target, partial)
    if not read_record(partial):
        write_json(partial / "stage.json", {"done": True})


def put_in_place(partial: Path, target: Path) -> None:
    """Replace the target by a finished folder; a kill at any moment leaves the old or the new one."""
    if target.exists() or target.is_symlink():
        target.rename(replaced_folder(target))
    partial.rename(target)
    finish_replacement(target)


def finish_replacement(target: Path) -> None:
    """Remove the folder that was replaced, or restore it if the process was killed before the new one was in place."""
    old = replaced_folder(target)
    if old.exists() and not target.exists():
        old.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder, or a link but not the folder to which it leads; it need not exist."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def replaced_folder(target: Path) -> Path:
    """Return the place of the old folder while a new one is put in its place."""
    return target.parent / f".{target.name}.old"


def read_record(folder: Path) -> dict[str, Any]:
    """Read `stage.json` of a folder; empty if there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        record = read_json(folder / "stage.json")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise CheckpointError(
            f"{folder / 'stage.json'}: is damaged ({one_line(error)}); remove {folder} and run again"
        ) from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder / 'stage.json'}: is no JSON object; remove {folder} and run again")
    return record
