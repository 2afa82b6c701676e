"""Intervals and paired tests say what SciPy's own say."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metabench.stats.intervals import data_intervals, mean_t_interval, row_summary

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
        assert summary.seed_ci95 is None
    else:
        assert summary.seed_ci95 == mean_t_interval(scores.mean(axis=1))[1]
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


def _design(rng, episodes=12, classes=9, ways=3):
    return np.array([rng.permutation(classes)[:ways] for _ in range(episodes)])


def naive_half_width(values, classes, prior, new_classes=False):
    """The mixture by its densities: matrices of scores, and a sum over a fine grid of the mean."""
    shares = (np.arange(40) + 0.5) / 40
    n, ids = len(values), np.unique(classes)
    has = np.array([[float(c in episode) for c in ids] for episode in classes])
    counts, ways = has.sum(axis=0), has.sum(axis=1).mean()
    about = counts if new_classes else counts - counts.mean()
    contrasts = scipy.linalg.null_space(np.ones((1, n))).T
    weights, errors = [], []
    for share in shares:
        ratio = share / (1 - share) / ways
        cov = contrasts @ (np.eye(n) + ratio * has @ has.T) @ contrasts.T
        rest = contrasts @ values
        square = rest @ np.linalg.solve(cov, rest)
        density = np.linalg.det(cov) ** -0.5 * square ** (-(n - 1) / 2)
        weights.append(density * prior(share))
        variance = square / (n - 1) * (1 / n + ratio * (about @ about) / n**2)
        errors.append(variance**0.5)
    weights = np.array(weights) / np.sum(weights)
    grid = np.linspace(0, max(errors) * 12, 20_001)
    inside = sum(
        w * (2 * scipy.stats.t(n - 1).cdf(grid / e) - 1)
        for w, e in zip(weights, errors, strict=True)
    )
    return np.interp(0.95, inside, grid)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(12, 9, 3), (6, 20, 3), (20, 5, 4)])
def test_the_intervals_of_the_data_are_the_mixtures(seed, shape):
    rng = np.random.default_rng(seed)
    classes = _design(rng, *shape)
    values = rng.normal(0, 0.1, shape[1])[classes].mean(axis=1) + rng.normal(0.5, 0.1, shape[0])
    found = data_intervals(np.stack([values - 0.1, values + 0.1]), classes)
    assert found.episodes == shape[0]
    assert found.score == pytest.approx(values.mean())
    low, high = (naive_half_width(values, classes, p) for p in (lambda h: 1 - h, lambda h: h))
    assert found.new_items == pytest.approx(max(low, high), rel=1e-4)
    other = naive_half_width(values, classes, lambda h: 1, new_classes=True)
    assert found.new_classes == pytest.approx(other, rel=1e-4)


@given(st.integers(0, 2**32), st.floats(0.1, 10), st.floats(-1, 1))
def test_the_intervals_of_the_data_have_the_units_of_the_scores(seed, factor, shift):
    rng = np.random.default_rng(seed)
    classes, scores = _design(rng), rng.random((2, 12))
    found = data_intervals(scores, classes)
    order = rng.permutation(12)
    names = rng.permutation(1000)[:9]  # other ids, other order, several queries a class
    other = data_intervals(
        (scores * factor + shift)[::-1, order], names[np.repeat(classes, 4, axis=1)[order]]
    )
    assert other.new_items == pytest.approx(found.new_items * factor)
    assert other.new_classes == pytest.approx(found.new_classes * factor)
    assert found.new_classes > found.new_items


def test_episodes_of_the_same_classes_say_nothing_of_others():
    rng = np.random.default_rng(0)
    scores = rng.random((1, 7))
    found = data_intervals(scores, np.tile(np.arange(5), (7, 1)))
    assert found.new_items == pytest.approx(mean_t_interval(scores[0])[1])
    assert found.new_classes is None
    constant = np.full((1, 7), 0.5)
    assert data_intervals(constant, np.tile(np.arange(5), (7, 1))) == (7, 0.5, 0.0, None)


def test_scores_that_are_all_alike_have_no_width():
    classes = _design(np.random.default_rng(0))
    assert data_intervals(np.full((3, 12), 0.25), classes) == (12, 0.25, 0.0, 0.0)


@pytest.mark.parametrize("episodes", [0, 1])
def test_fewer_than_two_disjoint_episodes_have_no_interval(episodes):
    assert data_intervals(np.full((3, episodes), 0.5), np.zeros((episodes, 75), dtype=int)) is None


@pytest.mark.parametrize(
    ("scores", "classes"),
    [
        (np.zeros((0, 3)), np.zeros((3, 5))),
        (np.zeros((1, 3)), np.zeros((4, 5))),
        (np.zeros((1, 3)), np.zeros(3)),
        (np.full((1, 3), np.nan), np.zeros((3, 5))),
    ],
)
def test_what_has_no_interval_of_the_data(scores, classes):
    with pytest.raises(ValueError):
        data_intervals(scores, classes)
