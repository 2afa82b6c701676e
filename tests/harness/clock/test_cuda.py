"""Timing on a CUDA device, where there is one."""

from __future__ import annotations

import pytest
import torch

from metabench.clock.cuda import clocks, memory_peaks, reset_peaks, throttle_reasons
from metabench.clock.stopwatch import HostStopwatch, stopwatch


def test_reasons_are_read_from_nvmls_own_names() -> None:
    names = {
        "nvmlClocksThrottleReasonNone": 0,
        "nvmlClocksThrottleReasonGpuIdle": 1,
        "nvmlClocksEventReasonSwPowerCap": 4,
        "nvmlClocksThrottleReasonSwPowerCap": 4,
        "nvmlClocksThrottleReasonHwSlowdown": 8,
        "nvmlClocksThrottleReasonAll": 13,
        "NVML_CLOCK_SM": 1,
    }
    assert throttle_reasons(names, 0) == []
    assert throttle_reasons(names, 1 | 4) == ["GpuIdle", "SwPowerCap"]


def test_the_cpu_has_no_such_facts() -> None:
    cpu = torch.device("cpu")
    reset_peaks(cpu)
    assert memory_peaks(cpu) is None
    assert clocks(cpu) is None
    assert isinstance(stopwatch(cpu, cold=True), HostStopwatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_events_lie_within_what_the_host_saw() -> None:
    device = torch.device("cuda")
    one = torch.randn(4096, 4096, device=device)
    for cold in (False, True):
        watch = stopwatch(device, cold=cold)
        watch.read(lambda: one @ one)
        reading = watch.read(lambda: one @ one)
        assert reading.device is not None
        assert reading.issued is not None
        assert 0 < reading.device <= reading.total
        assert 0 < reading.issued < reading.total  # the product goes on after it was launched
    reset_peaks(device)
    kept = torch.empty(2**20, device=device)
    peaks = memory_peaks(device)
    assert peaks is not None
    assert peaks["reserved"] >= peaks["allocated"] >= kept.nbytes
    found = clocks(device)
    assert found is None or found["sm_mhz"] > 0
