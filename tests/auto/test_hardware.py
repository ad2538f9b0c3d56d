"""Cores that are free: limits of a container, load of other processes, and the user's own number of threads."""

from pathlib import Path

import pytest
import torch

from slmrec.auto import hardware


def test_cores_in_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(hardware, "_QUOTA", quota)
    assert hardware.usable_cores() == 8
    for text, cores in {"max 100000": 8, "150000 100000": 2, "10000 100000": 1}.items():
        quota.write_text(text, encoding="ascii")
        assert hardware.usable_cores() == cores


@pytest.mark.parametrize(("busy", "free"), [(0, 4), (1, 3), (4, 1)])
def test_busy_cores_are_not_free(busy: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 cores this process may use 4; those of others do not count."""
    stat, ticks = tmp_path / "stat", iter((0, 100))
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(hardware, "_STAT", stat)

    def lines() -> None:
        now = next(ticks)
        rows = [
            f"cpu{core} {now if core < busy else 0} 0 0 {now if core >= busy else 0} 0 0 0 0 0 0" for core in range(8)
        ]
        stat.write_text("\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *rows, "intr 1 2"]), encoding="ascii")

    lines()
    monkeypatch.setattr(hardware.time, "sleep", lambda _: lines())
    assert hardware.free_cores(4) == free


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads matter on a CPU alone")
def test_threads_are_those_of_the_user_or_the_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(hardware, "free_cores", lambda cores: 1)
    monkeypatch.setattr(hardware.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(hardware.torch, "set_num_threads", used.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    hardware.use_free_threads()
    assert not used
    monkeypatch.delenv("OMP_NUM_THREADS")
    hardware.use_free_threads()
    assert used == [1]
    monkeypatch.setattr(hardware.torch, "get_num_threads", lambda: 1)
    hardware.use_free_threads()
    assert used == [1]
