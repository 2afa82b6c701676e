"""Ranks: only among comparable rows, ties shared, nobody ranked on too few training runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.stats.differences import all_pairs
from metabench.stats.ranks import Contender, ranks

pytestmark = pytest.mark.usefixtures("small_heap")


FEW = settings(max_examples=30, deadline=None)
"""Each example compares all pairs of several tables."""


def contender(scores, group="table", status="ok", seeds=None):
    return Contender(group, dict(zip(seeds or range(len(scores)), scores, strict=True)), status)


def scores_of(means, seeds=3, episodes=20, seed_sd=0.01, seed=0):
    """(S, E) scores of each row, about these means."""
    rng = np.random.default_rng(seed)
    runs = rng.normal(0, seed_sd, (len(means), seeds, 1))
    return np.asarray(means)[:, None, None] + runs + rng.normal(0, 0.02, (len(means), 1, episodes))


@st.composite
def tables(draw):
    """Rows of one to five seeds, some of them near each other, in two groups, some failed."""
    means = draw(st.lists(st.integers(0, 12).map(lambda k: k / 40), min_size=1, max_size=7))
    seeds = draw(st.integers(0, 1000))
    return [
        contender(
            scores[: draw(st.sampled_from([2, 3, 3, 3, 5]))],
            draw(st.sampled_from(["one", "one", "other"])),
            draw(st.sampled_from(["ok", "ok", "ok", "nan"])),
        )
        for scores in scores_of(means, seeds=5, seed=seeds)
    ]


def mean_of(row):
    return np.mean(list(row.runs.values()))


def test_rank_counts_the_rows_that_are_significantly_better():
    clear = [contender(scores) for scores in scores_of([0.2, 0.8, 0.5, 0.35])]
    assert ranks(clear) == [4, 1, 2, 3]
    alike = [contender(scores) for scores in scores_of([0.5, 0.8, 0.501, 0.2])]
    assert ranks(alike) == [2, 1, 2, 4]


def test_ranks_are_one_and_the_pairs_lost():
    rows = [contender(scores) for scores in scores_of([0.5, 0.52, 0.54, 0.56, 0.58, 0.6])]
    expected = [1] * len(rows)
    for (i, j), pair in all_pairs([row.runs for row in rows]).items():
        if pair.p_holm < 0.05:
            expected[i if pair.difference < 0 else j] += 1
    assert ranks(rows) == expected
    assert len(set(expected)) > 2


def test_rows_without_three_common_seeds_are_not_told_apart():
    best, worst = scores_of([0.9, 0.1])
    assert ranks([contender(worst), contender(best)]) == [2, 1]
    assert ranks([contender(worst), contender(best, seeds=[2, 3, 4])]) == [1, 1]


@FEW
@given(tables(), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows, random):
    order = random.sample(range(len(rows)), len(rows))
    expected = [ranks(rows)[place] for place in order]
    assert ranks([rows[place] for place in order]) == expected


@FEW
@given(tables())
def test_no_rank_is_worse_than_by_score_and_the_best_is_first(rows):
    found = ranks(rows)
    for row, rank in zip(rows, found, strict=True):
        if rank is None:
            assert row.status != "ok" or len(row.runs) < 3
            continue
        rivals = [
            other
            for other, place in zip(rows, found, strict=True)
            if place is not None and other.group == row.group
        ]
        # Rows of other numbers of seeds are compared on the common ones.
        if len({len(other.runs) for other in rivals}) == 1:
            assert 1 <= rank <= 1 + sum(mean_of(other) > mean_of(row) for other in rivals)


@FEW
@given(tables(), st.integers(0, 6))
def test_equal_rows_have_equal_ranks(rows, place):
    twin = rows[place % len(rows)]
    found = ranks([*rows, twin])
    assert found[place % len(rows)] == found[-1]


@FEW
@given(tables())
def test_what_has_no_rank_does_not_count_for_others_and_groups_are_apart(rows):
    found = ranks(rows)
    ranked = [row for row, rank in zip(rows, found, strict=True) if rank is not None]
    assert ranks(ranked) == [rank for rank in found if rank is not None]
    for group in ("one", "other"):
        alone = [row for row in ranked if row.group == group]
        expected = [rank for row, rank in zip(rows, found, strict=True) if row.group == group]
        assert ranks(alone) == [rank for rank in expected if rank is not None]


@FEW
@given(st.integers(0, 50), st.integers(2, 6))
def test_a_row_far_above_all_others_puts_each_of_them_one_down(seed, count):
    """Where all pairs are so clear that it doesn't matter how many there are."""
    rows = [contender(scores) for scores in scores_of(np.arange(count) / 2, seed=seed)]
    best = contender(scores_of([count / 2 + 1], seed=seed + 1)[0])
    before, after = ranks(rows), ranks([*rows, best])
    assert after == [*(rank + 1 for rank in before), 1]
