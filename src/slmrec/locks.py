"""Locks of output folders and files: one process writes, others are refused or wait."""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from slmrec.errors import CheckpointError
from slmrec.folders import disk_errors_reported
from slmrec.processes import is_main

_LOG = logging.getLogger(__name__)
WAIT_S = 60.0
"""Time that a short change, such as `items add`, waits for another writer."""
_RUN_LOCK = ".lock"
_POLL_S = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems that have no locks."""
_held = threading.local()


@contextmanager
def run_locked(output: Path) -> Iterator[None]:
    """Hold the lock of the output folder of a run, which is created if it does not exist.

    Args:
        output: The folder.

    Raises:
        CheckpointError: Another process writes into the folder.
    """
    with _folder(output), _locked(output, output / _RUN_LOCK, 0):
        yield


@contextmanager
def target_locked(target: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock of one file or folder that is replaced as a whole; the lock is a file beside it.

    Args:
        target: The file or folder; the folder that it is in is created if it does not exist.
        wait_s: Time to wait for another writer.

    Raises:
        CheckpointError: Another process writes it, still after the time to wait.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with target_locked(Path(folder) / "recs.parquet"):
        ...         [path.name for path in Path(folder).iterdir()]
        ['.recs.parquet.lock']
    """
    target = target.absolute()
    with _folder(target.parent), _locked(target, target.with_name(f".{target.name}.lock"), wait_s):
        yield


@contextmanager
def model_locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a model folder, and of the run that it belongs to if that is in progress; wait up to a minute.

    Args:
        folder: The model folder, for example `OUT/distill` or `OUT/pretrain/sasrec`.

    Raises:
        CheckpointError: Another process still writes into the model or its run.
    """
    runs = [run for run in folder.absolute().parents[:2] if (run / _RUN_LOCK).exists()]
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(_locked(run, run / _RUN_LOCK, WAIT_S))
        locks.enter_context(target_locked(folder, WAIT_S))
        yield


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Create a folder where it is missing; what was created and is still empty afterwards is removed."""
    if not is_main():
        yield
        return
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    with disk_errors_reported(folder):
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for each in created:
                each.rmdir()


@contextmanager
def _locked(target: Path, path: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards; the thread that holds it may take it again.

    The operating system releases the lock when its process ends, however it ends, so the file of a process that was
    killed locks nothing.
    """
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    key = path.parent.resolve() / path.name
    if key in held or not is_main():  # the main process holds the lock for all
        yield
        return
    with disk_errors_reported(path):
        file = _acquire(target, path, wait_s)
    held.add(key)
    try:
        yield
    finally:
        held.discard(key)
        path.unlink(missing_ok=True)  # before the lock is released, so that only its owner removes the file
        file.close()


def _acquire(target: Path, path: Path, wait_s: float) -> IO[str]:
    deadline, is_waiting = time.monotonic() + wait_s, False
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(file)
            file.close()
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    f"{target} is being written by {owner}; wait until it has finished, or choose another output; "
                    "nothing was changed"
                ) from None
            if not is_waiting:
                _LOG.info("%s is being written by %s; waiting up to %.0f s", target, owner, wait_s)
                is_waiting = True
            time.sleep(_POLL_S)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _LOG.warning(
                "%s: its file system has no locks (%s); make sure that no other command writes there",
                *(target, os.strerror(error.errno)),
            )
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # the previous owner removed the file after it was opened here
    file.truncate(0)
    file.write(json.dumps(this_process()))
    file.flush()
    return file


def this_process() -> dict[str, object]:
    """Return what a lock says of its owner: process, host, command and time."""
    program, *arguments = sys.argv or ["python"]  # options may contain passwords, so they are left out
    name = Path(program).name
    command = f"slmrec {arguments[0]}" if arguments and name in {"slmrec", "__main__.py"} else name
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "started": started}


def _owner(file: IO[str]) -> str:
    try:
        file.seek(0)
        owner = json.load(file)
        return f"`{owner['command']}` (process {owner['pid']} on {owner['host']}, since {owner['started']})"
    except (OSError, ValueError, KeyError, TypeError):  # the owner has not written its name yet
        return "another process"
