"""Which kernels (on the CPU: operators) a call spends its time in, by `torch.profiler`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

CALLS = 5
MOST = 20
LEAST_SHARE = 0.01
OTHERS = "(others)"


@dataclass(frozen=True)
class Kernel:
    """One kernel in one call.

    Attributes:
        name: as PyTorch or the compiler calls it.
        calls: how often it ran, in the mean.
        ms: milliseconds in it alone, not in what it called.
        share: of all kernels' time.
    """

    name: str
    calls: float
    ms: float
    share: float


def profiled(at: Callable[[int], Callable[[], object]], device: torch.device) -> list[Kernel]:
    """The kernels of `at(0)()`, `at(1)()` and so on, the longest first."""
    on_device = device.type == "cuda"
    # Or the profiler's library tells of itself on standard error, each time.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    calls = [at(number) for number in range(CALLS)]
    with profile(activities=activities) as profiler:
        for call in calls:
            call()
        if on_device:
            torch.cuda.synchronize(device)
    kind = "CUDA" if on_device else "CPU"
    found = []
    for event in profiler.key_averages():
        us = event.self_device_time_total if on_device else event.self_cpu_time_total
        if event.device_type.name == kind and us > 0:
            found.append((str(event.key), event.count / CALLS, us / 1e3 / CALLS))
    return by_share(found)


def by_share(found: Sequence[tuple[str, float, float]]) -> list[Kernel]:
    """Kernels by their share, from (name, calls, ms); the small ones together as the last."""
    total = sum(ms for _, _, ms in found)
    if not total:
        return []
    ranked = sorted(found, key=lambda kernel: (-kernel[2], kernel[0]))
    shown = [kernel for kernel in ranked[:MOST] if kernel[2] >= LEAST_SHARE * total]
    rest = ranked[len(shown) :]
    if rest:
        shown.append((OTHERS, sum(calls for _, calls, _ in rest), sum(ms for _, _, ms in rest)))
    return [Kernel(name, calls, ms, ms / total) for name, calls, ms in shown]
