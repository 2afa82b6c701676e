"""What the benchmarks tell of the engines, for the table behind `auto`."""

from __future__ import annotations

import pytest

from metabench.engine.modes import AUTO
from metabench.testing.benchmarks.engines import EngineTime, told

ONE, TWO, THREE = ("maml", "conv4"), ("anil", "conv4"), ("maml", "resnet12")


def test_an_engine_stands_beside_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUTO["cpu"], 2, "vmap")
    times = [
        EngineTime("cpu", 2, ONE, "vmap", 1.0),
        EngineTime("cpu", 2, TWO, "vmap", 10.0),
        EngineTime("cpu", 2, ONE, "loop", 2.0),
        EngineTime("cpu", 2, TWO, "loop", 80.0),
        EngineTime("cpu", 2, THREE, "loop", 1000.0),  # not timed with vmap
        EngineTime("cpu", 2, TWO, "mixed", 5.0),
    ]
    assert list(told(times)) == [
        "inner loop of order 2 on cpu, time over that of vmap, which auto takes (number of"
        " networks): loop 4.00 (2), mixed 0.50 (1)"
    ]


def test_nothing_is_told_without_a_comparison() -> None:
    assert list(told([])) == []
    chosen = AUTO["cpu"][1]
    assert list(told([EngineTime("cpu", 1, ONE, chosen, 1.0)])) == []
    assert list(told([EngineTime("cpu", 1, ONE, "vmap", 1.0)])) == []
