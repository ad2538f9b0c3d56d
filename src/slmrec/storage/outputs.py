"""Remote files and new folders that a command writes: made in a local folder, and uploaded when they are complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmrec.errors import StorageError
from slmrec.locks import target_locked
from slmrec.storage.cache import cached, digest, name_copy
from slmrec.storage.remote import place_of

_LAST = ("about.json", "stage.json")
"""Files without which a folder does not count, in the order in which they are uploaded, after all others."""


@contextmanager
def written(output: str | Path, replaced: bool = False) -> Iterator[Path]:
    """Give the path of a file or folder to write; a remote one is uploaded when the context ends without an error.

    Files that are written beside it are uploaded too. Hidden ones stay, so that an interrupted command continues.

    Args:
        output: Path or URI.
        replaced: True if files of an existing folder are replaced.

    Raises:
        StorageError: It is a folder that exists, or the store refuses or cannot be reached.
        CheckpointError: Another process of this machine writes it.

    Example:
        >>> with written("file:///data/recs.csv") as path:
        ...     path.as_posix()
        '/data/recs.csv'
    """
    remote = place_of(output)
    if isinstance(remote, Path):
        yield remote
        return
    if not replaced and remote.files().keys() - {""}:
        raise StorageError(f"{remote.uri}: exists and is a folder; choose another output: nothing was changed")
    folder, parent = cached("outputs", digest(remote.uri)), remote.parent()
    path = folder / remote.name
    name_copy(path, remote.uri)
    name_copy(folder, parent.uri)
    with target_locked(path):
        _remove_visible(folder)
        yield path
        names = list(files_below(folder))
        for name in sorted(names, key=upload_order):
            if Path(name).parts[0] == remote.name:
                remote.upload(folder / name, name.removeprefix(remote.name).removeprefix("/"))
            else:
                parent.upload(folder / name, name)
        _remove_visible(folder)


def upload_order(name: str) -> tuple[int, str]:
    """Return a key to sort files by; the state of a training comes after its best weights and its log."""
    last = name.rpartition("/")[2]
    return (2 + _LAST.index(last) if last in _LAST else int(last == "state.safetensors")), name


def files_below(folder: Path, hidden: bool = False) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it; the content of linked folders is part of it."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        above = [here.resolve(), *here.resolve().parents]
        folders[:] = [name for name in folders if (hidden or name[0] != ".") and (here / name).resolve() not in above]
        for name in files:
            if (hidden or name[0] != ".") and (here / name).is_file():
                yield (here / name).relative_to(folder).as_posix()


def _remove_visible(folder: Path) -> None:
    """Remove what an interrupted command has left."""
    for path in folder.iterdir():
        if path.name[0] == ".":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
