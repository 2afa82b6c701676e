"""Intervals and paired tests say what SciPy's own say."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metabench.stats.intervals import mean_t_interval, row_summary
from metabench.stats.paired import paired_t_test

SCORES = st.floats(0, 1).map(lambda x: round(x, 3))


def samples():
    return arrays(np.float64, st.integers(2, 40), elements=SCORES)


def tables(seeds):
    shapes = st.tuples(seeds, st.integers(2, 20))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=SCORES))


@given(samples())
def test_the_interval_is_students(values):
    mean, half_width = mean_t_interval(values)
    assert mean == pytest.approx(values.mean())
    if np.ptp(values) == 0:
        assert half_width == pytest.approx(0, abs=1e-12)
        return
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values)
    )
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(0.5, 0.1, size=(4000, 8))
    covered = [abs(m - 0.5) <= h for m, h in map(mean_t_interval, draws)]
    # Binomial: 4,000 intervals at 95% lie within 3 standard deviations, 41, of 3,800.
    assert abs(sum(covered) - 3800) <= 41


@given(tables(st.integers(1, 5)))
def test_a_rows_interval_is_over_episodes_and_its_spread_over_seeds(scores):
    summary = row_summary(scores)
    assert (summary.score, summary.ci95) == mean_t_interval(scores.mean(axis=0))
    assert summary.score == pytest.approx(scores.mean())
    if len(scores) < 3:
        assert summary.seed_std is None
    else:
        assert summary.seed_std == pytest.approx(np.std(scores.mean(axis=1), ddof=1), abs=1e-12)


@given(tables(st.just(4)), st.permutations(range(4)))
def test_the_order_of_the_seeds_does_not_matter(scores, order):
    assert row_summary(scores[order]) == pytest.approx(row_summary(scores), abs=1e-12)


@pytest.mark.parametrize(
    "scores",
    [[[0.5]], np.zeros((0, 5)), [0.5, 0.5], [[0.5, np.nan]], [[0.5, np.inf]]],
)
def test_what_has_no_summary(scores):
    with pytest.raises(ValueError):
        row_summary(scores)


@given(tables(st.just(2)))
def test_the_paired_test_is_scipys(scores):
    first, second = scores
    assume(np.ptp(first - second) > 1e-6)
    test = paired_t_test(first, second)
    expected = scipy.stats.ttest_rel(first, second)
    assert test.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)
    assert test.difference == pytest.approx((first - second).mean())
    low, high = expected.confidence_interval(0.95)
    assert test.ci95 == pytest.approx((high - low) / 2)
    assert paired_t_test(second, first).p == test.p


def test_equal_rows_do_not_differ_and_constant_differences_do():
    scores = np.array([0.25, 0.5, 0.75])
    assert paired_t_test(scores, scores) == (0.0, 0.0, 1.0)
    assert paired_t_test(scores + 0.25, scores) == (0.25, 0.0, 0.0)


def test_pairing_sees_what_unpaired_intervals_do_not():
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0.2, 0.9, 200)
    worse = difficulty + rng.normal(0, 0.01, 200)
    better = difficulty + 0.02 + rng.normal(0, 0.01, 200)
    (mean_a, half_a), (mean_b, half_b) = mean_t_interval(better), mean_t_interval(worse)
    assert mean_a - half_a < mean_b + half_b
    assert paired_t_test(better, worse).p < 1e-10


@pytest.mark.parametrize("second", [[0.5, 0.5, 0.5], [0.5, np.nan], [[0.5, 0.5]]])
def test_what_cannot_be_paired(second):
    with pytest.raises(ValueError):
        paired_t_test([0.1, 0.2], second)
