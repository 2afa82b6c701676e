"""The window in which times are taken: threads pinned, collector off, clock as it was."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from metabench.clock import timer


@dataclass
class Conditions:
    """Under what times were taken.

    Attributes:
        threads: of PyTorch within one operation.
        cores: those that this thread was pinned to; empty where it wasn't.
        load_before, load_after: the machine's load average over a minute; None where the system
            has none. What went before in the same run is in it.
        others: cores that anything but this process kept busy meanwhile, on average.
    """

    threads: int
    cores: tuple[int, ...]
    load_before: float | None
    load_after: float | None = None
    others: float = 0.0


@contextmanager
def window(device: torch.device) -> Iterator[Conditions]:
    """Everything still: what is timed inside is alone in its process.

    Raises:
        ClockError: somebody replaced a clock function, before or meanwhile.
    """
    timer.check_clock()
    _synchronize(device)
    with _collector_off(), _pinned(device) as cores:
        conditions = Conditions(torch.get_num_threads(), cores, load_average())
        begun, busy = timer.seconds(), _busy_elsewhere()
        yield conditions
        _synchronize(device)
        conditions.others = max(0.0, _busy_elsewhere() - busy) / (timer.seconds() - begun)
    conditions.load_after = load_average()
    timer.check_clock()


def load_average() -> float | None:
    """Processes that ran or wanted to, over the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _busy_elsewhere() -> float:
    """Seconds that cores spent, since the system began, on anything but this process."""
    every, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # Time for guests is in that of users already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    busy = sum(every) - sum(getattr(every, name, 0.0) for name in idle)
    return float(busy - own.user - own.system)


def collect_young() -> None:
    """Collect what was made within the window; the process's older objects are left alone.

    A whole collection takes some tenths of a second, with PyTorch loaded.
    """
    gc.collect(0)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        timer.synchronize(device)


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection inside the window."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _pinned(device: torch.device) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and those that it starts, on as many cores as PyTorch has threads.

    The last ones of those allowed: interrupts and other people's processes prefer the first. Not
    with CUDA, whose driver and autograd have threads of their own beside this one.
    """
    if device.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    chosen = tuple(sorted(allowed)[-torch.get_num_threads() :])
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:  # forbidden here
        yield ()
        return
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)
