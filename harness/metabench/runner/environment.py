"""On what a cell ran: versions, processor, device. From an allow-list; no host or user name."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
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
    by_memory = int(psutil.virtual_memory().total // MEMORY_A_WORKER)
    return max(1, min(usable_cores(), by_memory, cells))


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Put PyTorch's settings and random numbers back at the end: they are the notebook's."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = flags
