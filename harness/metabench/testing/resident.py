"""The memory that this process holds, and the most that it has held."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Peak resident memory since this program began, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`: there a program begins with the peak of the one that started it.
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_mib() -> float | None:
    """Resident memory of this process, mapped pages among it; None where Linux does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * mmap.PAGESIZE / 2**20
