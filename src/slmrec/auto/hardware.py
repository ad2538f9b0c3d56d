"""Hardware that is free for a run: cores, memory, GPU, bfloat16."""

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from slmrec.processes import num_local
from slmrec.training.memory import free_mb
from slmrec.training.optimization import use_bf16

_LOG = logging.getLogger(__name__)
_STAT, _QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
OBSERVED_S = 0.3
"""Time over which the load of the cores is observed, in seconds."""


@dataclass(frozen=True)
class Hardware:
    """Hardware that is free for a run."""

    cores: int
    """Number of cores that this process may use, in the affinity and the limit of a container."""
    free_cores: int
    """Number of these that other processes leave idle, at least 1."""
    memory: int
    """Bytes of memory that are free."""
    gpu: str | None
    """Name of the GPU; None if there is none."""
    bf16: bool
    """True if matrix products are computed in bfloat16."""

    def __str__(self) -> str:
        """Return the hardware in words."""
        device = f"GPU {self.gpu}" if self.gpu else f"{self.free_cores} of {self.cores} CPU cores free"
        precision = "bfloat16" if self.bf16 else "float32"
        return f"{device}, {self.memory / 2**30:.1f} GiB of memory free, {precision} products"


def free_hardware() -> Hardware:
    """Return the hardware that is free now; this observes the load of the cores for a moment.

    Example:
        >>> free_hardware().free_cores >= 1
        True
    """
    cores = usable_cores()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Hardware(cores, free_cores(cores), int(free_mb() * 2**20), gpu, use_bf16("auto"))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, _, period = _QUOTA.read_text(encoding="ascii").partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return cores if limit == "max" else max(1, min(cores, math.ceil(int(limit) / int(period))))


def free_cores(cores: int) -> int:
    """Return the number of cores that are idle, of those that this process may use; at least 1."""
    if not (_STAT.is_file() and hasattr(os, "sched_getaffinity")):
        return max(1, min(cores, round((os.cpu_count() or 1) - os.getloadavg()[0])))
    before = _idle_and_total()
    time.sleep(OBSERVED_S)
    idle, whole = (after - earlier for after, earlier in zip(_idle_and_total(), before, strict=True))
    return max(1, min(cores, round(len(os.sched_getaffinity(0)) * idle / max(1, whole))))


def _idle_and_total() -> tuple[int, int]:
    """Return the idle time and the whole time of the cores of this process, in ticks since the system started."""
    names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in _STAT.read_text(encoding="ascii").splitlines()]
    ticks = [list(map(int, line[1:9])) for line in lines if line and line[0] in names]
    return sum(core[3] + core[4] for core in ticks), sum(map(sum, ticks))


def use_free_threads() -> None:
    """Let torch compute with as many threads as there are free cores, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return
    threads = max(1, free_cores(usable_cores()) // num_local())
    if threads != torch.get_num_threads():
        _LOG.info("threads: %d, as many as there are free cores (OMP_NUM_THREADS sets another number)", threads)
        torch.set_num_threads(threads)
