"""Differences of rows: mean squares and intervals against other libraries, and what has none."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from metabench.stats.differences import all_pairs, difference, errors_of, pooled_spread

SCORES = st.integers(0, 100).map(lambda k: k / 100)


def table(rows, seeds, episodes, seed_sd=0.01, seed=0, gaps=0.0):
    """(R, S, E) scores, row r better than the next by `gaps`."""
    rng = np.random.default_rng(seed)
    means = 0.5 - gaps * np.arange(rows)
    runs = rng.normal(0, seed_sd, (rows, seeds, 1)) + rng.normal(0, 0.06, (rows, 1, episodes))
    return means[:, None, None] + runs + rng.normal(0, 0.09, (rows, seeds, episodes))


def as_runs(scores, seeds=None):
    return dict(zip(seeds or range(len(scores)), scores, strict=True))


@given(
    st.tuples(st.just(2), st.integers(3, 5), st.integers(2, 8)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=SCORES)
    )
)
def test_the_interval_turns_with_the_pair_and_holds_the_difference(scores):
    first, second = scores
    one, other = difference(first, second), difference(second, first)
    assert (one.difference, one.low, one.high) == (-other.difference, -other.high, -other.low)
    assert one.p == other.p
    assert one.low <= one.difference <= one.high
    assert 0 <= one.p <= 1


def test_the_variance_is_that_of_an_analysis_of_variance():
    first, second = table(2, 8, 9, seed_sd=0.04)
    gap = first - second
    seed, episode = np.indices(gap.shape)
    frame = pd.DataFrame({"gap": gap.ravel(), "seed": seed.ravel(), "episode": episode.ravel()})
    squares = anova_lm(ols("gap ~ C(seed) + C(episode)", frame).fit())
    runs, tasks, rest = squares["sum_sq"] / squares["df"] / gap.size
    found = difference(first, second)
    assert (found.runs, found.tasks, found.rest) == pytest.approx((runs, tasks, rest))
    variance = runs + tasks - rest
    df = variance**2 / (runs**2 / 7 + tasks**2 / 8 + rest**2 / (7 * 8))
    assert found.df == pytest.approx(df)
    low, high = scipy.stats.t.interval(0.95, df, loc=gap.mean(), scale=variance**0.5)
    assert (found.low, found.high) == pytest.approx((low, high))
    expected_p = 2 * scipy.stats.t.sf(abs(gap.mean()) / variance**0.5, df)
    assert found.p == pytest.approx(expected_p)


def test_where_only_seeds_differ_it_is_students_over_seeds():
    by_seed = np.array([0.01, 0.03, 0.035, 0.05])
    found = difference(np.tile(by_seed[:, None], (1, 30)), np.zeros((4, 30)))
    expected = scipy.stats.ttest_1samp(by_seed, 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))
    assert found.basis == "own seeds"


def test_where_only_episodes_differ_it_is_the_paired_test_over_episodes():
    first, second = table(2, 1, 25)
    found = difference(np.tile(first, (3, 1)), np.tile(second, (3, 1)))
    expected = scipy.stats.ttest_rel(first[0], second[0])
    assert found.basis == "no spread of seeds"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_it_is_of_these_checkpoints(seeds):
    first, second = table(2, seeds, 25)
    found = difference(first, second, pooled_spread(table(5, 3, 25)))
    expected = scipy.stats.ttest_rel(first.mean(axis=0), second.mean(axis=0))
    assert found.basis == "these checkpoints"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))


def test_the_interval_is_never_narrower_than_that_of_a_part():
    for seed in range(50):
        first, second = table(2, 3, 4, seed=seed)
        found, gap = difference(first, second), first - second
        for part in (gap.mean(axis=0), gap.mean(axis=1)):
            alone = scipy.stats.ttest_1samp(part, 0.0)
            assert found.p >= alone.pvalue * (1 - 1e-9)
            assert found.low <= alone.confidence_interval(0.95).low + 1e-9


def test_rows_of_equal_spread_share_it_and_its_degrees_of_freedom():
    by_seed = np.array([0.4375, 0.5, 0.5625])  # exact in binary
    rows = [np.tile(by_seed[:, None], (1, 4)) + r / 8 for r in range(4)]
    pooled = pooled_spread(rows)
    assert pooled is not None
    # Half of its variance, 2 * spread**4 / 8, and unbiased: 2 / (2 + 2) of it.
    assert pooled == pytest.approx((2**-8, 8.0, 8.0, 2**-16 / 8 / 2, 4))
    found = difference(rows[0], rows[1], pooled)
    assert found.basis == "pooled seeds"
    assert (found.runs, found.runs_df) == pytest.approx((2 * 2**-8 / 3, 8.0))


def test_unequal_spreads_cost_degrees_of_freedom_and_a_noisy_row_keeps_its_own():
    by_seed = np.array([-0.001, 0.0, 0.001])
    rows = [np.tile(by_seed[:, None] * (30 if r == 0 else 1), (1, 5)) for r in range(6)]
    pooled = pooled_spread(rows)
    assert pooled is not None
    assert pooled.variance == pytest.approx((0.03**2 + 5 * 0.001**2) / 6)
    noisy, calm = difference(rows[0], rows[1], pooled), difference(rows[1], rows[2], pooled)
    assert noisy.runs == pytest.approx((0.03**2 + pooled.variance) / 3)
    assert calm.runs == pytest.approx(2 * pooled.variance / 3)
    # One row has nearly all of the spread: there is no more to stand on than its three runs.
    assert (noisy.runs_df, calm.runs_df) == pytest.approx((2.0, 2.0), abs=0.1)


def test_the_degrees_of_freedom_of_a_pair_are_those_of_its_weighted_variances():
    """Against drawn variances: Satterthwaite's df is 2 * mean**2 / variance of the estimate."""
    spreads, rng = np.array([2.0, 1.0, 1.0, 0.5, 0.5]), np.random.default_rng(0)
    # The first row keeps its own, the second takes the pool's.
    drawn = spreads**2 * rng.chisquare(40, (200_000, 5)) / 40
    sums = drawn[:, 0] + drawn.mean(axis=1)
    expected = 2 * sums.mean() ** 2 / sums.var()
    quantiles = scipy.stats.norm.ppf((np.arange(41) + 0.5) / 41)
    runs = quantiles / quantiles.std(ddof=1)
    rows = [np.tile(spread * runs[:, None], (1, 2)) for spread in spreads]
    pooled = pooled_spread(rows)
    assert pooled is not None
    found = difference(rows[0], rows[1], pooled)
    assert found.runs_df == pytest.approx(expected, rel=0.03)


def test_a_noisy_row_can_be_told_apart_in_a_table_and_only_with_an_interval_beside_zero():
    """By 2 degrees of freedom nothing would be, after Holm; the pool's are more."""
    rng, found = np.random.default_rng(0), []
    for _ in range(30):
        scores = 0.5 + rng.normal(0, 0.003, (12, 3, 1)) + rng.normal(0, 0.01, (12, 3, 40))
        scores[0] += 0.1 + rng.normal(0, 0.012, (3, 1))
        pairs = all_pairs([as_runs(row) for row in scores])
        found.append(pairs[0, 1].p_holm)
        for pair in pairs.values():
            assert pair.p_holm >= pair.p
            assert pair.p_holm >= 0.05 or not pair.low <= 0 <= pair.high
    assert np.mean(np.array(found) < 0.05) > 0.6


def test_means_that_differ_by_rounding_are_equal():
    chance = [0.2] * 12
    first, second = dict.fromkeys(range(3), chance), {0: chance}
    assert (np.mean([chance] * 3, axis=0) != chance).any()
    found = all_pairs([first, second])[0, 1]
    assert (found.difference, found.p, found.basis) == (0.0, 1.0, "these checkpoints")


def test_runs_that_come_out_equally_good_by_chance_are_not_of_no_spread():
    """Three runs with the same mean, on other episodes each: their spread is that of the rest."""
    first = np.full((3, 20), 0.7)
    first[np.arange(3), np.arange(3)] = 0.1
    found = difference(first, np.full((3, 20), 0.5))
    assert found.basis == "own seeds"
    assert found.runs == found.rest > 0
    assert found.df < 3


def test_a_row_that_no_seed_changes_does_not_touch_the_pool():
    rows = list(table(4, 3, 30))
    still = np.tile(rows[0][:1], (3, 1))
    pooled = pooled_spread(rows)
    assert pooled is not None
    assert pooled_spread([*rows, still]) == pooled
    found = difference(rows[1], still, pooled)
    own = rows[1].mean(axis=1).var(ddof=1)
    assert found.basis == "pooled seeds"
    assert found.runs == pytest.approx(max(own, pooled.variance) / 3)  # of one row, not of two


def test_rows_of_other_numbers_of_seeds_are_pooled_by_their_degrees_of_freedom():
    rows = [table(1, seeds, 10, seed=seeds)[0] for seeds in (2, 3, 4, 6)]
    pooled = pooled_spread(rows)
    spreads = [row.mean(axis=1).var(ddof=1) for row in rows[1:]]
    assert pooled is not None
    assert pooled.rows == 3
    assert pooled.variance == pytest.approx(np.average(spreads, weights=[2, 3, 5]))
    assert pooled.df <= 10


def test_under_three_rows_with_a_spread_nothing_is_pooled():
    rows = list(table(2, 3, 10))
    assert pooled_spread(rows) is None
    assert pooled_spread([*rows, np.tile(rows[0][:1], (3, 1)), table(1, 2, 10)[0]]) is None
    pairs = all_pairs([as_runs(row) for row in rows])
    assert pairs[0, 1].basis == "own seeds"


def test_equal_rows_do_not_differ():
    first = table(1, 3, 10)[0]
    pooled = pooled_spread(table(4, 3, 10))
    for spread in (None, pooled):
        found = difference(first, first, spread)
        assert (found.difference, found.p) == (0.0, 1.0)
    assert difference(first, first).low == 0.0
    # What is the same in every run and every episode is certain as far as the data go.
    still = np.full((3, 10), 0.5)
    assert difference(still + 0.25, still)[:4] == (0.25, 0.25, 0.25, 0.0)


def test_two_episodes_are_enough_and_say_little():
    first, second = table(2, 3, 2, gaps=0.5)
    found = difference(first, second)
    alone = scipy.stats.ttest_1samp((first - second).mean(axis=0), 0.0)
    assert found.p >= alone.pvalue * (1 - 1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((3, 5)), np.zeros((2, 5))),
        (np.zeros((3, 5)), np.zeros((3, 4))),
        (np.zeros((3, 1)), np.zeros((3, 1))),
        (np.zeros((0, 5)), np.zeros((0, 5))),
        (np.zeros(5), np.zeros(5)),
        (np.full((3, 5), np.nan), np.zeros((3, 5))),
    ],
)
def test_what_cannot_be_compared(first, second):
    with pytest.raises(ValueError):
        difference(first, second)


def test_rows_of_other_episodes_and_rows_without_a_run_cannot_be_compared():
    with pytest.raises(ValueError):
        all_pairs([as_runs(np.zeros((3, 5))), as_runs(np.zeros((3, 6)))])
    with pytest.raises(ValueError, match="without a training run"):
        all_pairs([as_runs(np.zeros((3, 5))), {}])


def test_one_row_has_no_pair():
    assert all_pairs([as_runs(table(1, 3, 5)[0])]) == {}
    assert all_pairs([]) == {}


def p_in_table(pair):
    parts = pair.runs, pair.tasks, pair.rest, pair.table_df, pair.seeds, pair.episodes
    t_of = {df: abs(pair.difference) / v**0.5 for v, df in errors_of(*parts)}
    return max(2 * scipy.stats.t.sf(t, df) for df, t in t_of.items())


def test_holm_is_over_all_pairs_of_the_table():
    rows = [as_runs(row) for row in table(4, 3, 50, gaps=0.02)]
    pairs = all_pairs(rows)
    assert list(pairs) == list(combinations(range(4), 2))
    # In the table a pair has the pool's degrees of freedom.
    p_of = {place: p_in_table(pair) for place, pair in pairs.items()}
    least = 0.0
    for place, pair in enumerate(sorted(pairs, key=lambda pair: p_of[pair])):
        least = max(least, min(1.0, (len(pairs) - place) * p_of[pair]))
        assert pairs[pair].p_holm == pytest.approx(max(least, pairs[pair].p))
    pooled = pooled_spread([np.stack(list(row.values())) for row in rows])
    again = difference(*(list(rows[i].values()) for i in (0, 2)), pooled)
    assert pairs[0, 2]._replace(p_holm=again.p) == again


def test_rows_are_compared_on_the_seeds_that_both_have():
    scores = table(4, 5, 30, gaps=0.01)
    rows = [as_runs(row) for row in scores]
    rows[1] = as_runs(scores[1], [2, 1, 4, 8, 9])
    pair = all_pairs(rows)[0, 1]
    assert pair.seeds == 3
    assert pair.difference == pytest.approx(scores[0][[1, 2, 4]].mean() - scores[1][:3].mean())


def test_without_three_common_seeds_it_is_of_these_checkpoints_over_all_runs():
    scores = table(3, 3, 30)
    rows = [as_runs(scores[0]), as_runs(scores[1], [2, 5, 6]), as_runs(scores[2], [7, 8, 9])]
    pairs = all_pairs(rows)
    assert {pair.basis for pair in pairs.values()} == {"these checkpoints"}
    assert [pair.seeds for pair in pairs.values()] == [1, 0, 0]
    expected = scipy.stats.ttest_rel(scores[0].mean(axis=0), scores[2].mean(axis=0))
    assert pairs[0, 2].p == pytest.approx(expected.pvalue)


def test_what_is_said_of_checkpoints_does_not_weaken_what_is_said_of_algorithms():
    rows = [as_runs(row) for row in table(3, 3, 40, gaps=0.02)]
    alone = all_pairs(rows)
    beside = all_pairs([*rows, *(as_runs(row) for row in table(4, 1, 40, seed=9))])
    assert {place: beside[place] for place in alone} == alone
    assert beside[0, 3].basis == "these checkpoints"
