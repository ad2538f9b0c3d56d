"""Remote folders of runs: worked on in a local copy under a lock, and uploaded as they grow."""

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slmrec.errors import StorageError
from slmrec.locks import WAIT_S, target_locked, this_process
from slmrec.processes import is_main, on_main
from slmrec.storage.cache import cached, digest, name_copy
from slmrec.storage.mirror import Mirror
from slmrec.storage.remote import Remote, place_of

_LOG = logging.getLogger(__name__)
_LOCK = ".lock"
_TRIES = 5
_open: dict[Path, Mirror] = {}
"""Remote runs that this process writes, by their local folder."""


@contextmanager
def opened_run(output: str | Path) -> Iterator[Path]:
    """Give the folder of a run on this machine; that of a remote run is a copy, which is uploaded as it grows.

    The remote folder is locked. Finished steps and saved training states of other machines are downloaded first. Each
    step is uploaded when it is done, its `stage.json` last; the state of a training is uploaded after every epoch.

    Args:
        output: Path or URI.

    Raises:
        StorageError: Another command writes the run, or the store refuses or cannot be reached.

    Example:
        >>> with opened_run("file:///data/shop") as folder:
        ...     folder.as_posix()
        '/data/shop'
    """
    remote = place_of(output)
    if isinstance(remote, Path):
        yield remote
        return
    folder = cached("runs", digest(remote.uri), remote.name)
    name_copy(folder, remote.uri)
    if "" in remote.files():
        raise StorageError(f"{remote.uri}: is a file, expected the folder of a run; choose another output")
    mirror = Mirror(remote, folder)
    lock = on_main(lambda: _lock(remote, folder))
    try:
        on_main(mirror.begin)
        _open[folder] = mirror
        yield folder
        on_main(mirror.push)
    finally:
        _open.pop(folder, None)
        with suppress(StorageError):  # the store can no longer be reached, which was reported
            if is_main() and remote.read(_LOCK) == lock.encode():
                remote.remove(_LOCK)


def upload(output: Path) -> None:
    """Upload what has changed in the remote run to which a folder belongs, if it belongs to one.

    Raises:
        StorageError: The store refuses or cannot be reached.
    """
    if is_main():
        for folder, mirror in _open.items():
            if output.absolute().is_relative_to(folder):
                mirror.push()


def upload_training(training: Path) -> None:
    """Upload the saved state of a training that belongs to a remote run; if that fails, the next epoch tries again."""
    for folder, mirror in _open.items():
        if is_main() and training.absolute().is_relative_to(folder):
            try:
                mirror.push(training.absolute())
            except StorageError as error:
                _LOG.warning("%s; training goes on, and its state is uploaded after the next epoch", error)


def _lock(remote: Remote, folder: Path) -> str:
    """Create the lock of a remote run, and return its content.

    Raises:
        StorageError: There is a lock of another process that may still run.
    """
    with target_locked(folder, WAIT_S):  # processes of this machine remove the lock of a killed one in turn
        return _create_lock(remote)


def _create_lock(remote: Remote) -> str:
    own = json.dumps(this_process() | {"place": _place(), "token": uuid.uuid4().hex})
    for _ in range(_TRIES):
        if remote.create(_LOCK, own.encode()):
            return own
        content = remote.read(_LOCK)
        if content is None:
            continue  # released in this moment
        owner = _owner(content)
        if owner.get("place") == _place() and not Path(f"/proc/{owner.get('pid')}").exists():
            _LOG.warning("%s: the process that held its lock was killed; its lock is removed", remote.uri)
            if remote.read(_LOCK) == content:
                remote.remove(_LOCK)
            continue
        process = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
        raise StorageError(
            f"{remote.uri} is being written by `{owner.get('command')}` ({process}); wait until it has finished, or "
            f"choose another output; if it was killed, remove {remote.uri.rstrip('/')}/{_LOCK} and run again; "
            "nothing was changed"
        )
    raise StorageError(f"{remote.uri}: its lock {_LOCK} can neither be created nor read; check the permissions")


def _owner(content: bytes) -> dict[str, object]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _place() -> str:
    """Return what identifies this machine since it was started, and the processes that are visible on it."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.is_file() and namespace.is_symlink()):
        return uuid.uuid4().hex
    return f"{boot.read_text(encoding='utf-8').strip()} {namespace.readlink()}"
