"""Side by side: the ratio, its interval, and what the reference saw of the machine."""

from __future__ import annotations

import pytest

from metabench.clock.compare import WARM_UP, compare


class Machine:
    """Calls of known cost on a machine whose slowness changes over time."""

    def __init__(self, ticking, slowness=lambda number: 1.0) -> None:
        self.ticking, self.slowness, self.order = ticking, slowness, []

    def work(self, name: str, seconds: float):
        def call() -> None:
            self.ticking.now += seconds * self.slowness(len(self.order))
            self.order.append(name)

        return call

    def compare(self, **options):
        a, b, fixed = self.work("a", 0.002), self.work("b", 0.006), self.work("r", 0.001)
        return compare(a, b, fixed, **options)


def test_the_ratio_says_how_much_faster_a_is(ticking) -> None:
    found = Machine(ticking).compare(blocks=8)
    assert (found.ratio, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    assert (found.a.median, found.b.median) == pytest.approx((0.002, 0.006))
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert (found.blocks, found.a.samples) == (8, 16)


def test_blocks_are_abba_or_baab_at_random_with_the_reference_in_each(ticking) -> None:
    machine = Machine(ticking)
    machine.compare(blocks=12, seed=1)
    order = "".join(machine.order[3 * WARM_UP :])
    blocks = [order[n : n + 6] for n in range(0, len(order), 6)]
    assert len(blocks) == 12
    assert set(blocks) == {"rrabba", "rrbaab"}  # the reference once before it is timed
    again = Machine(ticking)
    again.compare(blocks=12, seed=1)
    assert again.order == machine.order


def test_a_machine_that_slows_down_leaves_the_ratio_alone_and_shows_in_the_drift(ticking) -> None:
    found = Machine(ticking, lambda number: 1 + number / 100).compare(blocks=20)
    assert found.ratio == pytest.approx(3.0, rel=0.01)
    assert found.low <= found.ratio <= found.high
    assert found.a.unstable
    assert found.drift > 0.3


def test_the_reference_need_not_be_given() -> None:
    found = compare(lambda: sum(range(100)), lambda: sum(range(1000)), blocks=5)
    assert found.ratio > 1
    assert found.conditions.threads >= 1
