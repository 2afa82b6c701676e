"""What is particular to CUDA: events, cold cache, memory peaks, clocks and throttling."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from metabench.clock import timer
from metabench.clock.stopwatch import Call, Reading
from metabench.engine.graphs import no_waiting

LAUNCH_BOUND = 0.9
"""Where issuing a call's kernels takes more than this share of its time, the device waits."""
_REASONS = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")


class CudaStopwatch:
    """Event pairs around a call and the host's clock around both, the device idle on both sides.

    Args:
        cold: before each call, and outside the events, a buffer of twice the L2 cache is zeroed.
    """

    def __init__(self, device: torch.device, *, cold: bool) -> None:
        self.device = device
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(size, dtype=torch.uint8, device=device) if cold else None

    def read(self, call: Call) -> Reading:
        start, stop = (self._event() for _ in range(2))
        with torch.cuda.device(self.device):  # events go to the current device's stream
            if self._flush is not None:
                self._flush.zero_()
            timer.synchronize(self.device)
            began = timer.now()
            start.record()
            result = call()
            stop.record()
            issued = timer.now()
            timer.synchronize(self.device)
            ended = timer.now()
        del result  # what it holds is given back outside the reading
        between_s = start.elapsed_time(stop) / 1e3
        return Reading((ended - began) / 1e9, between_s, (issued - began) / 1e9)

    @staticmethod
    def _event() -> torch.cuda.Event:
        return timer.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def waits(call: Call) -> bool:
    """Whether a call itself waits for the device; it is broken off there.

    When it returns then says nothing of how long its kernels took to issue.
    """
    try:
        with no_waiting():
            call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # it was called before, and raised none
        return True
    return False


def reset_peaks(device: torch.device) -> None:
    """Begin to look for the largest use of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_peaks(device: torch.device) -> dict[str, int] | None:
    """Bytes allocated and reserved at most since `reset_peaks`; None on the CPU."""
    if device.type != "cuda":
        return None
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


def clocks(device: torch.device) -> dict[str, Any] | None:
    """The device's clocks in MHz and why they are held back, by NVML; None where there is none.

    NVML is optional (the package nvidia-ml-py), and may be forbidden by the driver's settings.
    """
    if device.type != "cuda":
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        mask = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "throttled": throttle_reasons(vars(nvml), mask),
        }
    except Exception:  # not worth a time
        return None


def throttle_reasons(names: dict[str, Any], mask: int) -> list[str]:
    """The reasons whose bits are set in NVML's mask, by the constants of its module."""
    found = set()
    for name, bit in names.items():
        prefix = next((p for p in _REASONS if name.startswith(p)), None)
        single = isinstance(bit, int) and bit > 0 and bit & (bit - 1) == 0
        if prefix is not None and single and mask & bit:
            found.add(name.removeprefix(prefix))
    return sorted(found)
