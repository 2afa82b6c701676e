"""On what a cell ran: versions, processor, device. From an allow-list; no host or user name."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from metabench.store.machine import machine_id
from metabench.store.record import RunInfo

MEMORY_A_WORKER = 2 * 2**30


def run_info(device: torch.device, command: str, **seconds: float | None) -> RunInfo:
    """What stands in `run.json`; `seconds` are its durations, train_s and test_s."""
    import numpy as np

    import metabench

    return RunInfo(
        metabench=metabench.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=f"{platform.system()} {platform.machine()}",
        device=device_name(device),
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        **seconds,
    )


def device_name(device: torch.device) -> str:
    """`cpu`, or the accelerator's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def this_machine(device: torch.device) -> str:
    """The short digest under which times of this machine are kept."""
    return machine_id(device_name(device))


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup, or none that limits
    return cores


def default_jobs(device: torch.device, cells: int) -> int:
    """Workers where nobody said how many: one a core, within memory; one a CUDA device."""
    if device.type == "cuda":
        return 1
    return max(1, min(usable_cores(), usable_memory() // MEMORY_A_WORKER, cells))


def threads_left(jobs: int) -> int:
    """Cores of each of so many workers where nobody said how many: what is left, within memory."""
    return max(1, min(usable_cores() // jobs, usable_memory() // (MEMORY_A_WORKER * jobs)))


def usable_memory() -> int:
    """Bytes that this process may use: the machine's, or its cgroup's limit."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total  # no cgroup, or none that limits
