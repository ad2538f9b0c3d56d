"""Memory of this machine: the process's peak, counted anew for each stage, what a step adds to it, and what is free."""

import ctypes
import gc
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CLEAR, _STATUS, _FREE = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/meminfo")
_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Where a container's limit stands, and what it uses of it."""
_earlier, _earlier_gpu = [0.0], [0.0]
"""The peaks of this stage before the system was told to count anew, in MiB."""


def reset_peak() -> None:
    """Starts new peaks; off Linux, resident memory's is that of the whole process."""
    _earlier[0] = 0.0
    _count_anew()
    _earlier_gpu[0] = 0.0
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()


def peak_gpu_mb() -> float | None:
    """Peak of what tensors took of the GPU's memory, in MiB since `reset_peak`; None if no GPU was used."""
    gpu = _gpu()
    return max(_earlier_gpu[0], round(gpu.max_memory_allocated() / 2**20, 1)) if gpu else None


def gpu_growth_mb(step: Callable[[], object]) -> float:
    """As `growth_mb`, of the GPU's memory."""
    gpu: Any = _gpu()
    _earlier_gpu[0] = peak_gpu_mb() or 0.0
    gpu.reset_peak_memory_stats()
    before = gpu.memory_allocated()
    step()
    return float(gpu.max_memory_allocated() - before) / 2**20


def _gpu() -> Any:
    """What counts the GPU's memory, if this process has begun to use one."""
    torch = sys.modules.get("torch")  # where it has not been imported, nothing is on a GPU
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def peak_rss_mb() -> float:
    """Peak resident memory in MiB since `reset_peak`."""
    return max(_earlier[0], _peak_mb())


def growth_mb(step: Callable[[], object]) -> float:
    """MiB that a step needs at its peak beyond what was held before it; the peak of the stage stays known."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _earlier[0] = peak_rss_mb()
    _count_anew()
    before = _peak_mb()
    step()
    return _peak_mb() - before


def can_measure_growth() -> bool:
    """Whether the system counts peaks anew, without which what a step adds is not seen (Linux does)."""
    return _CLEAR.exists()


def free_mb() -> float:
    """MiB that programs can still take, within a container's limit too.

    Off Linux, the part of memory that the system calls unused; where it does not say, half of what is built in.
    """
    free = [_free_by_system()]
    for limit, used in _LIMITS:
        if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            free.append(int(text) - int(used.read_text(encoding="ascii")))
    return max(0, min(free)) / 2**20


def _free_by_system() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", _FREE.read_text(encoding="ascii")) if _FREE.exists() else None
    if found:
        return int(found[1]) * 1024
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2


def _count_anew() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def _peak_mb() -> float:
    if _STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
        if found:
            return round(int(found[1]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
