"""Sample sizes against statsmodels, and where no number of seeds or episodes is enough.

That the numbers give the power they promise is simulated in test_coverage_pairs.py.
"""

import pytest
from statsmodels.stats.power import TTestPower

from metabench.stats.differences import Basis, Difference
from metabench.stats.samples import needed


def found(
    size: float, runs: float, tasks: float, rest: float = 0.0, basis: Basis = "own seeds"
) -> Difference:
    """3 seeds and 1,000 episodes; `runs`, `tasks`, `rest` as variances of the difference."""
    return Difference(size, 0, 0, 0, 0, 0, basis, 3, 1000, runs, tasks, rest, 2.0, 2.0)


def test_where_only_seeds_have_a_spread_it_is_the_paired_t_tests():
    deviation = 0.01
    plan = needed(found(0.012, runs=deviation**2 / 3, tasks=0.0))
    size = TTestPower().solve_power(0.012 / deviation, power=0.8, alpha=0.05)
    assert plan.seeds == -(-size // 1) - 3
    assert plan.episodes is None
    assert plan.seeds_floor == pytest.approx(2.802 * deviation / 1003**0.5, rel=0.01)


def test_where_only_episodes_have_a_spread_it_is_the_paired_t_tests():
    deviation = 0.1
    plan = needed(found(0.005, runs=0.0, tasks=deviation**2 / 1000, basis="no spread of seeds"))
    size = TTestPower().solve_power(0.005 / deviation, power=0.8, alpha=0.05)
    assert plan.episodes == -(-size // 1) - 1000
    assert plan.seeds is None
    assert plan.seeds_floor == pytest.approx(2.802 * deviation / 1000**0.5, rel=0.01)


def test_the_floor_is_where_numbers_become_possible():
    runs, tasks, rest = 1e-5, 8e-6, 2e-6
    floors = needed(found(0.01, runs, tasks, rest))
    assert floors.seeds_floor is not None
    assert needed(found(floors.seeds_floor * 0.99, runs, tasks, rest)).seeds is None
    assert needed(found(-floors.seeds_floor * 1.01, runs, tasks, rest)).seeds is not None
    assert needed(found(floors.episodes_floor * 0.99, runs, tasks, rest)).episodes is None
    assert needed(found(floors.episodes_floor * 1.01, runs, tasks, rest)).episodes is not None


def test_a_clear_difference_needs_nothing_and_none_at_all_needs_what_nobody_has():
    assert needed(found(0.5, 1e-5, 8e-6, 2e-6))[:2] == (0, 0)
    assert needed(found(0.0, 1e-5, 8e-6, 2e-6))[:2] == (None, None)
    assert needed(found(0.1, 0.0, 0.0))[:2] == (0, 0)  # no spread anywhere


def test_smaller_differences_higher_power_and_stricter_levels_need_more():
    def seeds(size: float, power: float = 0.8, alpha: float = 0.05) -> int:
        more = needed(found(size, 1e-4, 8e-6, 2e-6), power, alpha).seeds
        assert more is not None
        return more

    assert seeds(0.012) > seeds(0.015) > seeds(0.03)
    assert seeds(0.015, power=0.95) > seeds(0.015)
    assert seeds(0.015, alpha=0.01) > seeds(0.015)


def test_checkpoints_say_nothing_of_more_seeds():
    plan = needed(found(0.004, runs=0.0, tasks=8e-6, basis="these checkpoints"))
    assert (plan.seeds, plan.seeds_floor) == (None, None)
    assert plan.episodes is not None
