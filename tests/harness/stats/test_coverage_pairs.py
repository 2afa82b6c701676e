"""How often intervals of differences hold the truth, and how often equal rows are told apart.

Simulated are spreads as they were found in tables of 1,000 episodes: episodes .09 (the same for all
rows, so they cancel), algorithm by episode .06, run by episode .045, seeds .001 to .02.
60 episodes stand for 1,000: what is of an episode is scaled by sqrt(60 / 1,000).
"""

import numpy as np
import pytest

from metabench.stats.differences import all_pairs, difference, pooled_spread
from metabench.stats.samples import needed

TIMES = 4000
EPISODES = 60
SCALE = (EPISODES / 1000) ** 0.5


def table(rng, seed_sds, seeds, episodes=EPISODES, scale=SCALE):
    """(R, S, E) scores of equally good rows; a row whose seeds have no spread has one run."""
    rows = len(seed_sds)
    live = (np.asarray(seed_sds) > 0)[:, None, None]
    runs = rng.normal(0, 1, (rows, seeds, 1)) * np.asarray(seed_sds)[:, None, None]
    rest = rng.normal(0, 0.045 * scale, (rows, seeds, episodes)) * live
    tasks = rng.normal(0, 0.06 * scale, (rows, 1, episodes))
    return 0.5 + runs + tasks + rest + rng.normal(0, 0.09 * scale, episodes)


def coverage(seed_sds, seeds, pair=(0, 1)):
    """Share of intervals that hold the true difference, none."""
    rng, held = np.random.default_rng(len(seed_sds) * 10 + seeds), 0
    for _ in range(TIMES):
        scores = table(rng, seed_sds, seeds)
        found = difference(scores[pair[0]], scores[pair[1]], pooled_spread(scores))
        held += found.low <= 0 <= found.high
    return held / TIMES


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.001, 0.005, 0.02])
def test_with_their_own_seeds_two_rows_are_covered_as_said(seed_sd, seeds):
    assert coverage([seed_sd] * 2, seeds) == pytest.approx(0.95, abs=0.015)


# The spread of a row is the larger of its own and the pool's: wide by design where seeds decide.
@pytest.mark.parametrize(
    ("rows", "seeds", "seed_sd", "reached"),
    [
        (6, 3, 0.001, 0.961),
        (6, 3, 0.02, 0.978),
        (6, 5, 0.005, 0.962),
        (12, 3, 0.005, 0.970),
        (12, 5, 0.001, 0.955),
    ],
)
def test_with_pooled_seeds_at_least_95_percent_are_covered(rows, seeds, seed_sd, reached):
    covered = coverage([seed_sd] * rows, seeds)
    assert covered >= 0.935
    assert covered == pytest.approx(reached, abs=0.011)  # 3 standard errors


@pytest.mark.parametrize(
    ("seed_sds", "seeds"),
    [
        ([0.01] + [0.003] * 11, 3),
        ([0.02] + [0.002] * 5, 5),
        ([0.02] + [0.002] * 2, 3),
    ],
)
def test_one_row_much_noisier_than_its_table_is_covered_as_said(seed_sds, seeds):
    """The pool takes no certainty from calm rows to a noisy one."""
    assert coverage(seed_sds, seeds) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("rows", [2, 6])
def test_a_row_that_no_seed_changes_is_covered_as_said(rows):
    assert 0.935 <= coverage([0.0] + [0.005] * (rows - 1), 3) <= 0.975


def test_two_rows_that_no_seed_changes_are_covered_as_said():
    assert coverage([0.0, 0.0, 0.005, 0.005], 3) == pytest.approx(0.95, abs=0.015)


def test_the_t_test_over_seed_means_covers_less():
    """Why episodes count: all seeds of a row share how its algorithm takes to them."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        first, second = table(rng, [0.001] * 2, 5)
        by_seed = (first - second).mean(axis=1)
        held += abs(by_seed.mean()) <= 2.776 * by_seed.std(ddof=1) / 5**0.5
    assert held / 1000 < 0.9


def false_differences(seeds, tables, spread_of_spreads, rows=6):
    """Share of tables of equally good rows with a significant pair in them."""
    rng, found = np.random.default_rng(seeds), 0
    for _ in range(tables):
        sds = 0.0045 * np.exp(rng.normal(0, spread_of_spreads, rows) - spread_of_spreads**2 / 2)
        scores = table(rng, sds, seeds)
        pairs = all_pairs([dict(enumerate(row)) for row in scores])
        found += any(pair.p_holm < 0.05 for pair in pairs.values())
    return found / tables


@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("seeds", [3, 5])
def test_six_rows_that_are_equally_good_are_not_told_apart(seeds):
    """At most 5% of tables tell two apart; tests/end_to_end/test_many_seeds.py really trains."""
    # 400 tables: their share is within .022 (2 standard errors at 5%) of the true one.
    assert false_differences(seeds, 400, spread_of_spreads=0.0) <= 0.05


@pytest.mark.usefixtures("small_heap")
def test_rows_of_unequal_spread_that_are_equally_good_are_not_told_apart():
    # Seeds of the noisiest row spread some 6 times as far as those of the calmest.
    assert false_differences(3, 400, spread_of_spreads=0.7) <= 0.05


@pytest.mark.usefixtures("small_heap")
def test_rows_that_differ_are_told_apart():
    """The same spreads, one row better by .03: or the tests above could be met by silence."""
    rng, told = np.random.default_rng(0), 0
    for _ in range(100):
        scores = table(rng, [0.0045] * 6, 3)
        scores[0] += 0.03
        told += all_pairs([dict(enumerate(row)) for row in scores])[0, 1].p_holm < 0.05
    assert told >= 95


@pytest.mark.parametrize(
    ("rows", "seeds", "seed_sd", "gap"),
    [(2, 3, 0.005, 0.02), (6, 3, 0.01, 0.03), (6, 4, 0.02, 0.035), (2, 3, 0.002, 0.013)],
)
def test_what_is_said_to_be_needed_gives_about_that_power(rows, seeds, seed_sd, gap):
    """The number of seeds that is asked for on average finds the difference in 4 of 5 cases."""
    rng, episodes = np.random.default_rng(rows), 200
    plan = planned(rng, rows, seeds, episodes, seed_sd, gap)
    for more_seeds, more_episodes in ((plan.seeds, 0), (0, plan.episodes)):
        if more_seeds is None or more_episodes is None or more_episodes > 1000:
            continue
        found = 0
        for _ in range(400):
            scores = table(rng, [seed_sd] * rows, seeds + more_seeds, episodes + more_episodes, 1.0)
            scores[0] += gap
            found += difference(scores[0], scores[1], pooled_spread(scores)).p < 0.05
        # 400 trials: 2 standard errors are .04; a whole seed more is a step of up to .1.
        assert 0.72 <= found / 400 <= 0.92


def planned(rng, rows, seeds, episodes, seed_sd, gap):
    """What is needed, from parts of the variance that are the mean over 300 tables."""
    tables = [table(rng, [seed_sd] * rows, seeds, episodes, 1.0) for _ in range(300)]
    found = [difference(scores[0], scores[1], pooled_spread(scores)) for scores in tables]
    parts = {
        name: float(np.mean([getattr(one, name) for one in found]))
        for name in ("runs", "tasks", "rest", "runs_df")
    }
    return needed(found[0]._replace(difference=gap, **parts))
