"""Somebody replaced the clock: it is noticed, named, and no time is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metabench.clock import timer
from metabench.clock.measure import measure
from metabench.clock.timer import ClockError


def test_nothing_is_replaced_here() -> None:
    assert timer.patched() == []
    timer.check_clock()


@pytest.mark.parametrize("name", ["perf_counter", "perf_counter_ns", "monotonic", "time"])
def test_a_replaced_function_of_time_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, name, lambda: 0)
    assert timer.patched() == [f"time.{name}"]
    with pytest.raises(ClockError, match=rf"^time\.{name} was replaced in this process"):
        timer.check_clock()


def test_it_is_noticed_too_where_it_happened_before_the_module_was_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow() -> float:
        return 0.0

    monkeypatch.setattr(time, "perf_counter", slow)
    monkeypatch.setitem(timer._TAKEN, "perf_counter", slow)
    assert timer.patched() == ["time.perf_counter"]


def test_one_function_of_time_under_the_name_of_another_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.monotonic)
    assert timer.patched() == ["time.perf_counter"]


@pytest.mark.parametrize("name", ["synchronize", "Event"])
def test_a_replaced_function_of_cuda_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    assert f"torch.cuda.{name}" in timer.patched()


def test_a_replaced_method_of_events_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda *args: 0.0)
    assert timer.patched() == ["torch.cuda.Event.elapsed_time"]


def test_an_algorithm_that_replaces_the_clock_while_it_is_timed_is_not_timed(
    trial_of, linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", real)  # put back in the end

    class Patching(linear):
        def adapt(self, support, ctx):
            time.perf_counter = lambda: real() / 10
            return super().adapt(support, ctx)

    with pytest.raises(ClockError, match=r"time\.perf_counter was replaced"):
        measure(*trial_of(Patching))


def test_the_clock_is_taken_before_plugins_load_in_the_runs_own_process(
    third_party: Callable[[str], Path], tmp_path: Path
) -> None:
    script = (
        "from metabench.experiment.prepared import prepare\n"
        "from metabench.clock import timer\n"
        "assert timer.patched() == []\n"
        "prepare('smoke')\n"
        "print(timer.patched(), timer.now() > 10**6)"
    )
    path = str(third_party("metabench-patches-clock"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "METABENCH_OUT": str(tmp_path / "out")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['time.perf_counter'] True\n", done.stderr
