"""Two rows of a table compared, and what rows are called."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from metabench.episodes.protocol import Protocol
from metabench.errors import UnknownNameError, UsageError
from metabench.leaderboard.compare import Comparison, compare_rows
from metabench.leaderboard.names import Only, RowName, row_called
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource
from metabench.stats.differences import all_pairs

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)


def scores(results: Any, key: str) -> Any:
    """(E,) accuracies, by hand."""
    made = results.predicted[key]
    return (made.predictions == made.targets).mean(axis=1)


def table(results: Any) -> Any:
    return table_rows(StoreSource(results.store), "study")


def compared(results: Any, first: str, second: str, **only: Any) -> list[Comparison]:
    return list(compare_rows(table(results), first, second, Only(**only)).found)


def one(results: Any, first: str, second: str, **only: Any) -> Comparison:
    [pair] = compared(results, first, second, **only)
    return pair


# Two rows of a table.


def test_a_pair_is_that_of_the_whole_table_whichever_comes_first(results: Any) -> None:
    skills = {"a": 0.75, "b": 0.7, "c": 0.5, "d": 0.3}
    keys = {n: results.row(n, skill=skill, protocol=LONG) for n, skill in skills.items()}
    results.row("t", skill=0.9, protocol=LONG, inference="transductive")
    runs = [{s: scores(results, key) for s, key in enumerate(of)} for of in keys.values()]
    expected = all_pairs(runs)
    for (i, first), (j, second) in [((0, "a"), (1, "b")), ((1, "b"), (3, "d"))]:
        pair, other = one(results, first, second), one(results, second, first)
        assert pair.found == expected[i, j]
        assert pair.family == other.family == 6
        assert other.found is not None
        turned = (-expected[i, j].difference, -expected[i, j].high, -expected[i, j].low)
        assert other.found[:3] == turned
        assert other.found.p_holm == expected[i, j].p_holm
    assert one(results, "b", "d").verdict == "better"
    assert one(results, "d", "b").verdict == "worse"


def test_what_is_left_out_of_sight_still_counts_for_the_correction(results: Any) -> None:
    for name in ("a", "b", "c"):
        results.row(name, protocol=LONG)
    results.row("c", protocol=LONG, backbone="identity")
    whole, part = one(results, "a", "b"), one(results, "a", "b", backbones=["conv4*"])
    assert whole.family == part.family == 6
    assert whole.found == part.found


def test_rows_that_are_not_told_apart_say_what_it_takes(results: Any) -> None:
    results.row("a", skill=0.6, protocol=LONG)
    results.row("b", skill=0.63, protocol=LONG)
    pair = one(results, "a", "b")
    assert pair.verdict == "not told apart"
    assert pair.needed is not None
    results.row("c", skill=0.1, protocol=LONG)
    assert one(results, "a", "c").needed is None


def test_across_inference_modes_a_pair_stands_by_itself(results: Any) -> None:
    keys = (
        results.row("a", skill=0.6, protocol=LONG),
        results.row("t", skill=0.9, protocol=LONG, inference="transductive"),
    )
    results.row("b", protocol=LONG)
    pair = one(results, "t", "a")
    runs = [{s: scores(results, key) for s, key in enumerate(of)} for of in keys[::-1]]
    assert pair.found == all_pairs(runs)[0, 1]
    assert (pair.family, pair.modes) == (1, ("transductive", "inductive"))
    assert "ranked apart" in pair.note


def test_under_three_seeds_in_common_checkpoints_are_compared(results: Any) -> None:
    first = results.row("a", seeds=3, skill=0.8, protocol=LONG)
    [second] = results.row("b", seeds=1, skill=0.3, protocol=LONG)
    found = one(results, "a", "b").found
    assert found is not None
    mean = np.mean([scores(results, key) for key in first], axis=0)
    test = scipy.stats.ttest_rel(mean, scores(results, second))
    assert found.basis == "these checkpoints"
    assert found.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"content": "f" * 32}, "other data: d-dddddddd and d-ffffffff"),
        ({"episode_shift": 1}, "other episodes"),
        ({"status": "nan"}, r"b@conv4-32: nan \(3 of 3\)"),
        ({"status": "missing"}, r"b@conv4-32: missing \(3 of 3\)"),
    ],
)
def test_what_must_not_be_compared_is_not(results: Any, second: dict[str, Any], told: str) -> None:
    results.row("a")
    results.row("b", **second)
    pair = one(results, "a", "b")
    assert (pair.verdict, pair.found, pair.needed) == ("not compared", None, None)

    assert re.search(told, pair.note)


def test_the_means_are_those_of_which_the_difference_is(results: Any) -> None:
    """Two seeds of the first row, of which the second has none, turn its mean round."""
    for seed, skill in enumerate((0.6, 0.6, 0.6, 0.1, 0.1)):
        results.add("a", seed, skill=skill, protocol=LONG)
    results.row("b", skill=0.5, protocol=LONG)
    pair = one(results, "a", "b")
    assert pair.found is not None
    assert pair.scores is not None
    assert pair.scores[0] - pair.scores[1] == pytest.approx(pair.found.difference)
    assert (pair.seeds, pair.found.seeds) == ((5, 3), 3)
    assert pair.first.score is not None
    assert pair.second.score is not None
    assert (pair.first.score - pair.second.score) * pair.found.difference < 0
    results.add("c", 7, protocol=LONG)
    few = one(results, "a", "c")
    assert few.scores == pytest.approx((few.first.score, few.second.score))
    # a and b are the only pair with 3 seeds in common.
    assert (few.family, few.apart) == (2, 1)


def test_a_row_whose_runs_came_apart_is_not_compared(results: Any) -> None:
    results.row("a")
    results.add("b", 0)
    results.add("b", 1, code="f" * 32)
    assert "several versions" in one(results, "a", "b").note


def test_rows_of_other_protocols_are_never_compared(results: Any) -> None:
    results.row("a", protocol=LONG)
    results.row("b", protocol=Protocol(ways=5, shots=5, queries=3, episodes=8))
    with pytest.raises(UsageError, match=r"a@conv4-32 under quickdraw 5w1s3q, b@.* 5w5s3q"):
        compared(results, "a", "b")
    results.row("b", protocol=LONG)
    found = compare_rows(table(results), "a", "b")
    assert [pair.first.labels.protocol for pair in found.found] == ["5w1s3q"]
    assert [row.labels.protocol for row in found.only_second] == ["5w5s3q"]


# What a row is called.


@pytest.fixture
def named(results: Any) -> Any:
    for variant in ("", "bn", "first-order"):
        results.add("maml", variant=variant)
    results.add("proto", variant="cosine")
    for backbone in ("conv4-32", "identity"):
        results.add("centroid", backbone=backbone)
    return [RowName.of(row) for row in table(results)]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("maml", "maml@conv4-32"),
        ("maml/", "maml@conv4-32"),
        ("maml/bn", "maml/bn@conv4-32"),
        ("maml/f*", "maml/first-order@conv4-32"),
        ("proto", "proto/cosine@conv4-32"),
        ("centroid@identity", "centroid@identity"),
        ("centroid@ide*", "centroid@identity"),
    ],
)
def test_a_row_goes_by_its_name(named: Any, text: str, row: str) -> None:
    assert str(row_called(named, text)) == row


def test_a_name_of_several_rows_or_none_says_what_there_is(named: Any) -> None:
    with pytest.raises(UsageError) as several:
        row_called(named, "centroid")
    assert several.value.hint == "say which: centroid@conv4-32, centroid@identity"
    with pytest.raises(UnknownNameError) as unknown:
        row_called(named, "mamll")
    assert unknown.value.hint == "did you mean 'maml'?"


def test_a_pattern_picks_none_of_several_algorithms(named: Any) -> None:
    with pytest.raises(UsageError, match="4 rows") as several:
        row_called([*named, RowName("proto", "", "identity")], "*o*@*")
    assert "proto@identity, proto/cosine@conv4-32" in several.value.hint
    assert row_called(named, "mam*").variant == ""


def test_the_listing_of_an_ambiguous_name_has_variants_too(named: Any) -> None:
    with pytest.raises(UsageError) as several:
        row_called([*named, RowName("centroid", "bn", "conv4-32")], "centroid")
    assert several.value.hint.endswith("centroid@conv4-32, centroid@identity, centroid/bn@conv4-32")


def test_a_row_is_not_compared_with_itself(results: Any) -> None:
    results.row("maml")
    with pytest.raises(UsageError, match="the same row"):
        compared(results, "maml", "maml@conv4-32")


def test_a_protocol_of_any_name_can_be_asked_for(results: Any) -> None:
    results.row("a")
    [row] = table(results)
    odd = replace(row, labels=row.labels.model_copy(update={"protocol": "any"}))
    assert odd in Only(protocols=["any"])
    assert odd not in Only(protocols=["5w1s"])
