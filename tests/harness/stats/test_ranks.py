"""Ranks: only among comparable rows, ties shared, nobody ranked on too few training runs."""

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from metabench.stats.ranks import Rankable, ranks


def row(score, group="table", seeds=3, status="ok"):
    return Rankable(group, score, seeds, status)


def test_the_best_is_first_and_ties_share():
    assert ranks([row(0.5), row(0.7), row(0.5), row(0.1)]) == [2, 1, 2, 4]


def test_scores_that_print_alike_are_tied():
    assert ranks([row(0.50001), row(0.50004), row(0.5002)]) == [2, 2, 1]


def test_groups_are_ranked_apart():
    inductive, transductive = ("5w1s", "inductive"), ("5w1s", "transductive")
    rows = [row(0.5, inductive), row(0.9, transductive), row(0.6, inductive)]
    assert ranks(rows) == [2, 1, 1]


@pytest.mark.parametrize(
    "unranked",
    [row(0.9, seeds=2), row(0.9, status="nan"), row(0.9, status="missing"), row(None)],
)
def test_what_is_not_ranked_does_not_count_for_others(unranked):
    assert ranks([row(0.5), unranked, row(0.4)]) == [1, None, 2]


@given(st.lists(st.integers(0, 20).map(lambda k: k / 20), min_size=1, max_size=12))
def test_ranks_are_scipys_for_competitions(scores):
    expected = scipy.stats.rankdata([-score for score in scores], method="min")
    assert ranks([row(score) for score in scores]) == expected.astype(int).tolist()
