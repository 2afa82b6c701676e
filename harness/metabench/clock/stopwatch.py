"""One reading: what a call takes on a device, the device idle before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from metabench.clock import timer

Call = Callable[[], object]


class Reading(NamedTuple):
    """What one call took, in seconds.

    Attributes:
        total: by the host's clock, until the device is idle again.
        device: by the device's own events; None on the CPU.
        issued: by the host's clock, until the call returned; None on the CPU, where it is `total`.
    """

    total: float
    device: float | None = None
    issued: float | None = None


class Stopwatch(Protocol):
    """Times calls on one device."""

    def read(self, call: Call) -> Reading:
        """Call once, and say what it took."""


class HostStopwatch:
    """Times calls on the CPU, by the host's clock."""

    def read(self, call: Call) -> Reading:
        start = timer.now()
        result = call()
        stop = timer.now()
        del result  # what it holds is given back outside the reading
        return Reading((stop - start) / 1e9)


def stopwatch(device: torch.device, *, cold: bool = False) -> Stopwatch:
    """The stopwatch of a device; `cold`: see `CudaStopwatch`."""
    if device.type != "cuda":
        return HostStopwatch()
    from metabench.clock.cuda import CudaStopwatch

    return CudaStopwatch(device, cold=cold)
