"""Locks: one writer for each output, found out by name, and nothing left of writers that died."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from slmrec import locks
from slmrec.errors import CheckpointError
from slmrec.locks import model_locked, run_locked, target_locked

Lock = Callable[[Path], AbstractContextManager[None]]
HOLD = (
    "import sys, time; from pathlib import Path; from slmrec import locks; sys.argv = ['slmrec', 'run', 'secret']\n"
    "with locks.{lock}(Path({path!r})):\n"
    "    print('held', flush=True); time.sleep(60)"
)


@contextmanager
def held(lock: Lock, path: Path) -> Iterator[None]:
    """Hold a lock in another thread, for which locks are as foreign as those of another process."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(path):
            taken.set()
            done.wait(30)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert taken.wait(30)
        try:
            yield
        finally:
            done.set()
            future.result()


@contextmanager
def process_holding(lock: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD.format(lock=lock, path=str(path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("lock", ["run_locked", "target_locked"])
def test_a_second_process_is_refused_and_told_the_owner(lock: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with process_holding(lock, path) as process:
        with pytest.raises(CheckpointError) as refusal, getattr(locks, lock)(path):
            pytest.fail("two writers")
        message = str(refusal.value)
        assert message.startswith(f"{path} is being written by `slmrec run` (process {process.pid} on ")
        assert ", since 20" in message and "nothing was changed" in message
        assert "secret" not in message and "\n" not in message


@pytest.mark.parametrize("lock", ["run_locked", "target_locked"])
def test_a_killed_owner_locks_nothing(lock: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with process_holding(lock, path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list(tmp_path.rglob("*.lock"))) == 1  # its file is still there
        with getattr(locks, lock)(path):
            (file,) = tmp_path.rglob("*.lock")
            assert json.loads(file.read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert not list(tmp_path.rglob("*.lock"))


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    with run_locked(tmp_path / "a" / "out"), target_locked(tmp_path / "b" / "file"):
        assert (tmp_path / "a" / "out" / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with run_locked(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "out").iterdir()] == ["result"]


def test_the_owner_may_take_its_lock_again(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with run_locked(tmp_path):
        with run_locked(tmp_path / "link"):
            pass
        assert (tmp_path / ".lock").is_file()  # the outer lock is still held


def test_a_short_change_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slmrec")
    model, order = tmp_path / "model", []

    def change() -> None:
        with model_locked(model):
            order.append("changed")

    with ThreadPoolExecutor(1) as pool:
        with held(target_locked, model):
            future = pool.submit(change)
            with pytest.raises(TimeoutError):
                future.result(0.5)
            order.append("written")
        future.result(30)
    assert order == ["written", "changed"]
    assert "waiting up to 60 s" in caplog.text


@pytest.mark.parametrize("name", ["distill", "pretrain/sasrec"])
def test_a_change_of_a_model_does_not_disturb_a_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.2)
    with (
        held(run_locked, tmp_path),
        pytest.raises(CheckpointError, match="is being written by"),
        model_locked(tmp_path / name),
    ):
        pytest.fail("two writers")


def test_writers_take_turns(tmp_path: Path) -> None:
    """No two of eight threads hold the lock at a time, although each of them removes the file."""
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(25):
            with target_locked(tmp_path / "x", wait_s=30):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert most == [1]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="Not a directory"),
        target_locked(tmp_path / "file" / "x"),
    ):
        pytest.fail("no folder")


def test_other_processes_of_a_distributed_run_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(run_locked, tmp_path):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with run_locked(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(CheckpointError), run_locked(tmp_path):
            pytest.fail("two writers")
