"""Algorithms over data sets: against naive counts, other libraries, and what is refused."""

from itertools import combinations, product

import numpy as np
import pytest
import scikit_posthocs
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metabench.stats.across import across_datasets

pytestmark = pytest.mark.usefixtures("small_heap")


def names(kind, count):
    return [f"{kind}-{i}" for i in range(count)]


def compare(scores):
    datasets, algorithms = np.shape(scores)
    return across_datasets(scores, names("data", datasets), names("algorithm", algorithms))


def table(datasets, algorithms, gap=0.03, noise=0.02, seed=0):
    """(D, A) scores; the first algorithm is the best."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0.6, 0.1, (datasets, 1))
    return hard - gap * np.arange(algorithms) + rng.normal(0, noise, (datasets, algorithms))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(6, 9), st.integers(2, 4)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.integers(0, 9).map(lambda k: k / 10))
    )
)
def test_pairs_are_wilcoxons_by_going_through_all_signs(scores):
    found = compare(scores)
    columns = [int(name.rpartition("-")[2]) for name in found.algorithms]
    p_values = {}
    for i, j in found.p_holm:
        gaps = np.round(scores[:, columns[i]] - scores[:, columns[j]], 6)
        sizes = scipy.stats.rankdata(np.abs(gaps[gaps != 0]))
        sums = [abs(np.dot(signs, sizes)) for signs in product([-1, 1], repeat=len(sizes))]
        seen = abs(np.dot(np.sign(gaps[gaps != 0]), sizes))
        p_values[i, j] = np.mean(np.array(sums) >= seen - 1e-9)
    least = 0.0
    for place, pair in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, p_values[pair] * (len(p_values) - place)))
        assert found.p_holm[pair] == pytest.approx(least)
        assert found.p_holm[pair] >= min(found.least_p, 1.0) - 1e-12


def test_mean_ranks_are_those_of_competitions_with_ties_shared():
    scores = np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.1]] * 3)
    found = compare(scores)
    assert found.algorithms == ("algorithm-0", "algorithm-1", "algorithm-2")
    assert found.mean_ranks == (1.5, 1.75, 2.75)


def test_friedman_is_that_of_mean_ranks():
    scores = table(12, 4)
    found = compare(scores)
    k, n = 4, 12
    ranks = np.array(found.mean_ranks)
    statistic = 12 * n / (k * (k + 1)) * (np.sum(ranks**2) - k * (k + 1) ** 2 / 4)
    assert found.friedman_p == pytest.approx(scipy.stats.chi2.sf(statistic, k - 1))


def test_pairs_are_those_of_scikit_posthocs():
    scores = table(14, 5, gap=0.01)
    found = compare(scores)
    order = [int(name.rpartition("-")[2]) for name in found.algorithms]
    columns = [scores[:, a] for a in order]
    expected = scikit_posthocs.posthoc_wilcoxon(columns, p_adjust="holm").to_numpy()
    for (i, j), p in found.p_holm.items():
        assert p == pytest.approx(expected[i, j])


def test_the_best_stands_first_and_clear_differences_are_apart():
    found = compare(table(16, 4, gap=0.1)[:, ::-1])
    assert found.algorithms == tuple(f"algorithm-{i}" for i in (3, 2, 1, 0))
    assert found.groups == ((0,), (1,), (2,), (3,))
    assert max(found.p_holm.values()) < 0.05


@pytest.mark.parametrize("seed", range(6))
def test_groups_are_all_largest_sets_of_tied_algorithms(seed):
    found = compare(table(16, 6, gap=0.012, seed=seed))
    assert found.friedman_p is not None
    tied = {pair for pair, p in found.p_holm.items() if p >= 0.05 or found.friedman_p >= 0.05}
    sets = [
        set(some)
        for size in range(1, 7)
        for some in combinations(range(6), size)
        if all(pair in tied for pair in combinations(some, 2))
    ]
    largest = [one for one in sets if not any(one < other for other in sets)]
    assert sorted(map(tuple, map(sorted, largest))) == list(found.groups)


def test_where_friedman_sees_nothing_all_are_in_one_group():
    found = compare(table(8, 5, gap=0.0))
    assert found.friedman_p is not None
    assert found.friedman_p >= 0.05
    assert found.groups == ((0, 1, 2, 3, 4),)


def test_algorithms_that_are_equal_everywhere_are_tied():
    # Sums whose last digits differ: .1 + .2 is not .3.
    scores = np.stack([np.full(7, 0.1 + 0.2), np.full(7, 0.3), np.full(7, 0.3)], axis=1)
    found = compare(scores)
    assert found.mean_ranks == (2.0, 2.0, 2.0)
    assert found.friedman_p == 1.0
    assert set(found.p_holm.values()) == {1.0}


def test_few_data_sets_can_tell_no_pair_of_many():
    six = compare(table(6, 3, gap=0.5))
    assert six.least_p == pytest.approx(3 * 2 / 2**6)
    assert six.groups == ((0, 1, 2),)
    two = compare(table(6, 2, gap=0.5))
    assert two.friedman_p is None
    assert two.p_holm[0, 1] == pytest.approx(two.least_p) == pytest.approx(1 / 32)
    assert two.groups == ((0,), (1,))


def test_algorithms_of_one_quality_are_seldom_told_apart():
    """Of 200 tables of 4 equally good algorithms at most 5%, within 2 standard errors (.031)."""
    told = [len(compare(table(10, 4, gap=0.0, seed=seed)).groups) > 1 for seed in range(200)]
    assert np.mean(told) <= 0.05 + 0.031


@pytest.mark.parametrize(
    ("scores", "datasets", "algorithms", "why"),
    [
        (table(5, 3), names("d", 5), names("a", 3), "protocols of one data set are not"),
        (table(6, 3), ["d", *names("d", 5)[1:], "d"], names("a", 3), "'d' is there twice"),
        (table(6, 3), names("d", 6), ["a", "b", "a"], "algorithm 'a' is there twice"),
        (table(6, 1), names("d", 6), ["a"], "one algorithm"),
        (table(6, 3), names("d", 6), names("a", 2), "are not of 6 data sets and 2"),
        (np.where(table(6, 3) > 0, np.nan, 0), names("d", 6), names("a", 3), "finite"),
    ],
)
def test_what_is_no_comparison_over_data_sets(scores, datasets, algorithms, why):
    with pytest.raises(ValueError, match=why):
        across_datasets(scores, datasets, algorithms)
