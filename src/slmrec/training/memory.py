"""Memory of this process and machine: the peak of a stage, the growth during a step, and free memory."""

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
"""Files of a container's memory limit and of its memory use (cgroup v2 and v1)."""
_previous_peak, _previous_gpu_peak = [0.0], [0.0]
"""Peaks in MiB of this stage before the peak counters of the system were last reset."""


def reset_peak() -> None:
    """Reset the peaks; on systems other than Linux, the resident peak stays that of the whole process."""
    _previous_peak[0] = 0.0
    _reset_counter()
    _previous_gpu_peak[0] = 0.0
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()


def peak_gpu_mb() -> float | None:
    """Return the peak GPU memory of tensors in MiB since `reset_peak`; None if no GPU was used."""
    gpu = _gpu()
    return max(_previous_gpu_peak[0], round(gpu.max_memory_allocated() / 2**20, 1)) if gpu else None


def gpu_growth_mb(step: Callable[[], object]) -> float:
    """Return the peak GPU memory in MiB that a step needs beyond what was allocated before it."""
    gpu: Any = _gpu()
    _previous_gpu_peak[0] = peak_gpu_mb() or 0.0
    gpu.reset_peak_memory_stats()
    before = gpu.memory_allocated()
    step()
    return float(gpu.max_memory_allocated() - before) / 2**20


def _gpu() -> Any:
    """Return the module `torch.cuda` if this process uses a GPU."""
    torch = sys.modules.get("torch")  # a process that has not imported torch uses no GPU
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def peak_rss_mb() -> float:
    """Return the peak resident memory in MiB since `reset_peak`."""
    return max(_previous_peak[0], _peak_mb())


def growth_mb(step: Callable[[], object]) -> float:
    """Return the peak memory in MiB that a step needs beyond what was resident before; `peak_rss_mb` stays right."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _previous_peak[0] = peak_rss_mb()
    _reset_counter()
    before = _peak_mb()
    step()
    return _peak_mb() - before


def can_measure_growth() -> bool:
    """Return whether the system can reset its peak counter, which `growth_mb` needs (Linux can)."""
    return _CLEAR.exists()


def free_mb() -> float:
    """Return the free memory in MiB, within the limit of a container if there is one.

    On systems other than Linux this is the unused memory, or half of the installed memory where that is unknown.
    """
    free = [_free_of_system()]
    for limit, used in _LIMITS:
        if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            free.append(int(text) - int(used.read_text(encoding="ascii")))
    return max(0, min(free)) / 2**20


def _free_of_system() -> int:
    text = _FREE.read_text(encoding="ascii") if _FREE.exists() else ""
    if available := re.search(r"MemAvailable:\s+(\d+) kB", text):
        return int(available[1]) * 1024
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2


def _reset_counter() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def _peak_mb() -> float:
    if _STATUS.exists() and (resident := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))):
        return round(int(resident[1]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
