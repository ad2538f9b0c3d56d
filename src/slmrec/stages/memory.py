"""The process's peak resident memory, counted anew for each stage where the system allows it."""

import re
import resource
import sys
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Starts a new peak (Linux); elsewhere the peak is that of the whole process."""
    if _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def peak_rss_mb() -> float:
    """Peak resident memory in MiB since `reset_peak`."""
    if _STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
        if found:
            return round(int(found[1]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
