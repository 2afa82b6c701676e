"""Timing on a CUDA device: one made of the CPU, and where there is one, a real one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda

from metabench.clock import timer
from metabench.clock.cuda import (
    CudaStopwatch,
    clocks,
    memory_peaks,
    reset_peaks,
    throttle_reasons,
    waits,
)
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


class FakeDevice:
    """A device beside the host: what is issued to it begins when what went before has ended.

    Attributes:
        host, device: seconds; when the host is, and when the device will be idle.
        happened: what was done, in turn.
    """

    def __init__(self) -> None:
        self.host = self.device = 1.0
        self.happened: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = SimpleNamespace(L2_cache_size=64)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(timer, "now", self.now)
        monkeypatch.setattr(timer, "synchronize", self.synchronize)
        monkeypatch.setattr(timer, "Event", lambda enable_timing: FakeEvent(self))

    def now(self) -> int:
        self.happened.append("now")
        return round(self.host * 1e9)

    def synchronize(self, device: torch.device) -> None:
        self.happened.append("synchronize")
        self.host = self.device = max(self.host, self.device)

    def issue(self, issuing: float, running: float) -> None:
        self.happened.append("call")
        self.host += issuing
        self.device = max(self.device, self.host) + running


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.on = device

    def record(self) -> None:
        self.on.happened.append("event")
        self.at = max(self.on.device, self.on.host)

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


@pytest.mark.parametrize("cold", [False, True])
def test_a_reading_holds_the_call_alone(monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    fake = FakeDevice()
    fake.install(monkeypatch)
    watch = CudaStopwatch(torch.device("cpu"), cold=cold)
    if cold:
        assert watch._flush is not None
        assert watch._flush.nbytes == 2 * 64
        watch._flush.fill_(7)
    fake.device += 100.0  # something else, begun before

    reading = watch.read(lambda: fake.issue(0.25, 2.0))

    assert reading == pytest.approx((2.25, 2.25, 0.25))
    order = ["synchronize", "now", "event", "call", "event", "now", "synchronize", "now"]
    assert fake.happened == order
    assert watch._flush is None or not watch._flush.any()


def test_the_cache_is_emptied_before_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice()
    fake.install(monkeypatch)
    watch = CudaStopwatch(torch.device("cpu"), cold=True)
    flush = watch._flush
    assert flush is not None
    flush.fill_(7)
    seen = []

    def synchronize(device: torch.device) -> None:
        seen.append(bool(flush.any()))
        flush.fill_(7)  # done on the device: not once more before the second one

    monkeypatch.setattr(timer, "synchronize", synchronize)
    watch.read(lambda: None)
    assert seen == [False, True]


def test_a_call_that_waits_by_itself_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    fake.install(monkeypatch)
    one = torch.ones(3)
    assert not waits(lambda: one + one)
    assert waits(lambda: one.sum().item())
    assert fake.debug_mode == 0


def test_that_memory_is_out_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda().install(monkeypatch)

    def call() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        waits(call)


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
