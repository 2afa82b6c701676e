"""Medians, quartiles, intervals over blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.clock.spread import BLOCKS, block_interval, spread

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=60)


@given(TIMES)
def test_the_median_lies_within_its_interval_and_that_within_the_times(times) -> None:
    found = spread(times)
    assert min(times) <= found.low <= found.median <= found.high <= max(times)
    assert found.median == np.median(times)
    assert found.samples == len(times)
    assert found.iqr >= 0


@given(TIMES, st.floats(0.01, 100))
def test_another_unit_changes_nothing_else(times, factor) -> None:
    one, other = spread(times), spread([factor * time for time in times])
    for fact in ("median", "iqr", "low", "high"):
        assert getattr(other, fact) == pytest.approx(factor * getattr(one, fact), abs=1e-9)


def test_quartiles_are_those_that_the_standard_library_has() -> None:
    times = [(n * 7 % 17 + 1) / 1000 for n in range(15)]
    quarters = np.quantile(times, [0.25, 0.75], method="weibull")
    assert spread(times).iqr == pytest.approx(np.diff(quarters).item())


def test_what_does_not_vary_is_certain_and_stable() -> None:
    found = spread([2.0] * 20)
    assert (found.low, found.median, found.high, found.iqr) == (2.0, 2.0, 2.0, 0.0)
    assert not found.unstable


def test_unstable_begins_at_a_tenth_of_the_median() -> None:
    below = [0.96, 1.0, 1.04] * 5
    above = [0.94, 1.0, 1.06] * 5
    assert not spread(below).unstable
    assert spread(above).unstable


def test_the_interval_knows_that_neighbours_in_time_go_together() -> None:
    # Half of the time the machine was slow: ten blocks say how little is known, not 200 samples.
    alternating = np.tile([1.0, 2.0], 100)
    slow_later = np.repeat([1.0, 2.0], 100)
    assert block_interval(alternating, 0) == (1.5, 1.5)
    low, high = block_interval(slow_later, 0)
    assert (low, high) == (1.0, 2.0)
    assert len(slow_later) % BLOCKS == 0


def test_the_same_seed_draws_the_same_interval() -> None:
    times = np.random.default_rng(0).exponential(size=50)
    assert block_interval(times, 1) == block_interval(times, 1)
    intervals = {block_interval(times, seed) for seed in range(5)}
    assert len(intervals) > 1


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = block_interval(rng.exponential(size=100), 0)
        held += low <= np.log(2) <= high
    assert 0.85 < held / 200 <= 1
