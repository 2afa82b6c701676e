"""Rows compared: the pairs of a table, folders row by row, versions of the code in one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from metabench.episodes.protocol import Protocol
from metabench.errors import UnknownNameError, UsageError
from metabench.leaderboard.changes import Side, changes, compare_sides, compare_versions
from metabench.leaderboard.compare import Comparison, Only, RowName, compare_rows, row_called
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource
from metabench.stats.differences import all_pairs

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)


def scores(results: Any, key: str) -> Any:
    """(E,) accuracies, by hand."""
    made = results.predicted[key]
    return (made.predictions == made.targets).mean(axis=1)


def compared(results: Any, first: str, second: str, **only: Any) -> list[Comparison]:
    source = StoreSource(results.store)
    return list(compare_rows(source, "study", first, second, Only(**only)).found)


def one(results: Any, first: str, second: str, **only: Any) -> Comparison:
    [pair] = compared(results, first, second, **only)
    return pair


def sides(old: Any, new: Any) -> Any:
    return compare_sides(*(Side.of(StoreSource(r.store), "study") for r in (old, new)))


def started(results: Any, keys: list[str], when: str) -> None:
    """Note when cells ran."""
    for key in keys:
        path = results.store.folder(key) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": when}))


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
    assert (pair.family, pair.inference) == (1, "transductive / inductive")
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
        ({"content": "f" * 32}, "other data: d-ffffffff and d-dddddddd"),
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
    found = compare_rows(StoreSource(results.store), "study", "a", "b")
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
    return table_rows(StoreSource(results.store), "study")


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
    assert RowName.of(next(r for r in named if str(RowName.of(r)) == row)) == row_called(
        named, text
    )


def test_a_name_of_several_rows_or_none_says_what_there_is(named: Any) -> None:
    with pytest.raises(UsageError) as several:
        row_called(named, "centroid")
    assert several.value.hint == "say which: centroid@conv4-32, centroid@identity"
    assert row_called(Only(backbones=["identity"]).of(named), "centroid").backbone == "identity"
    with pytest.raises(UnknownNameError) as unknown:
        row_called(named, "mamll")
    assert unknown.value.hint == "did you mean 'maml'?"


def test_a_row_is_not_compared_with_itself(results: Any) -> None:
    results.row("maml")
    with pytest.raises(UsageError, match="the same row"):
        compared(results, "maml", "maml@conv4-32")


# Two folders.


def test_a_copy_has_the_same_predictions(make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    for results in (old, new):
        results.row("a")
        results.row("b", seeds=1)
    found = sides(old, new)
    assert [pair.verdict for pair in found.found] == ["same predictions"] * 2
    assert all(pair.found.difference == 0.0 and pair.changes == () for pair in found.found)
    assert found.regressions == []


def test_rows_that_differ_are_paired_over_seeds_and_episodes(
    make_results: Callable[[], Any],
) -> None:
    old, new = make_results(), make_results()
    skills = {"a": (0.7, 0.4), "b": (0.5, 0.5), "c": (0.6, 0.9)}
    gaps = {}
    for name, (before, after) in skills.items():
        was = old.row(name, seeds=1, skill=before, protocol=LONG)
        now = new.row(name, seeds=1, skill=after, protocol=LONG, code="e" * 32)
        gaps[name] = scores(new, now[0]) - scores(old, was[0])
    for results in (old, new):
        results.row("same", seeds=1, protocol=LONG)
    found = {pair.first.labels.algorithm: pair for pair in sides(old, new).found}
    tests = {name: scipy.stats.ttest_1samp(gap, 0.0).pvalue for name, gap in gaps.items()}
    holm = multipletests(list(tests.values()), method="holm")[1]
    for (name, p), corrected in zip(tests.items(), holm, strict=True):
        pair = found[name].found
        assert pair is not None
        assert pair.difference == pytest.approx(gaps[name].mean())
        assert (pair.p, pair.p_holm) == pytest.approx((p, corrected))
        assert found[name].family == 3
        assert found[name].changes[0].startswith("code of algorithm (c-")
    assert {name: pair.verdict for name, pair in found.items()} == {
        "a": "worse",
        "b": "not told apart",
        "c": "better",
        "same": "same predictions",
    }
    assert [pair.first.labels.algorithm for pair in sides(old, new).regressions] == ["a"]


def test_what_a_seed_makes_of_an_algorithm_cancels(make_results: Callable[[], Any]) -> None:
    """Seeds of very different skill; the change takes the same from each."""
    old, new = make_results(), make_results()
    protocol = Protocol(ways=5, shots=1, queries=3, episodes=400)
    for seed, skill in enumerate((0.35, 0.55, 0.75, 0.95)):
        old.add("a", seed, skill=skill, protocol=protocol)
        new.add("a", seed, skill=skill - 0.15, protocol=protocol, code="e" * 32)
    [pair] = sides(old, new).found
    assert pair.found is not None
    assert pair.found.basis == "own seeds"
    assert pair.verdict == "worse"
    assert pair.found.low < -0.15 < pair.found.high


def test_each_row_is_judged_by_its_own_runs(make_results: Callable[[], Any]) -> None:
    """One row with runs far apart widens nobody else's interval, and none is narrowed."""
    old, new = make_results(), make_results()
    gaps = {}
    for name, skills in {"a": (0.5,) * 3, "b": (0.6,) * 3, "wild": (0.2, 0.6, 0.9)}.items():
        keys = [
            (
                old.add(name, seed, skill=0.6, protocol=LONG),
                new.add(name, seed, skill=skill, protocol=LONG, code="e" * 32),
            )
            for seed, skill in enumerate(skills)
        ]
        gaps[name] = np.stack([scores(new, now) - scores(old, was) for was, now in keys])
    for pair in sides(old, new).found:
        found, gap = pair.found, gaps[pair.first.labels.algorithm]
        assert found is not None
        assert (found.basis, pair.family) == ("own seeds", 3)
        over_seeds = scipy.stats.ttest_1samp(gap.mean(axis=1), 0.0)
        over_episodes = scipy.stats.ttest_1samp(gap.mean(axis=0), 0.0)
        assert found.p >= max(over_seeds.pvalue, over_episodes.pvalue) - 1e-12
        if pair.first.labels.algorithm == "wild":  # nothing else matters beside its runs
            assert found.p == pytest.approx(over_seeds.pvalue)


def test_only_seeds_that_both_have_are_compared(make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    old.row("a", seeds=3, protocol=LONG)
    new.row("a", seeds=5, protocol=LONG)
    old.add("b", seed=0)
    new.add("b", seed=1)
    first, second = sorted(sides(old, new).found, key=lambda pair: pair.first.labels.algorithm)
    assert first.found is not None
    assert (first.verdict, first.found.seeds) == ("same predictions", 3)
    assert second.note == "they have no training seed in common"


def test_what_does_not_belong_together_is_named(make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    other = Protocol(ways=5, shots=1, queries=3, episodes=9)
    for results, options in ((old, {}), (new, {"content": "f" * 32})):
        results.row("data", **options)
    old.row("asked")
    new.row("asked", protocol=other)
    old.row("gone")
    new.row("come")
    old.row("broken")
    new.row("broken", status="nan")
    found = sides(old, new)
    notes = {pair.first.labels.algorithm: pair.note for pair in found.found}
    assert all(pair.verdict == "not compared" for pair in found.found)
    assert notes["data"] == "other data: d-dddddddd and d-ffffffff"
    assert notes["asked"].startswith("another protocol: p-")
    assert notes["broken"] == "broken@conv4-32: nan (3 of 3)"
    assert [row.labels.algorithm for row in found.only_first] == ["come"]
    assert [row.labels.algorithm for row in found.only_second] == ["gone"]
    nothing = make_results()
    nothing.row("another")
    with pytest.raises(UsageError, match="no row in common"):
        sides(old, nothing)


# Versions in one folder.


def test_a_row_is_compared_with_the_last_version_before_it(results: Any) -> None:
    eldest = results.row("a", code="1" * 32, protocol=LONG)
    elder = results.row("a", code="2" * 32, skill=0.9, protocol=LONG)
    other = results.row("a", code="4" * 32, hp={"x": 1}, protocol=LONG)
    now = results.row("a", code="3" * 32, protocol=LONG)
    results.row("b", protocol=LONG)
    for year, keys in enumerate((eldest, elder, other, now)):
        started(results, keys, f"202{year}-01-01T00:00:00+00:00")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.first.records] == now
    assert [record.key for record in pair.second.records] == elder
    gap = [scores(results, n) - scores(results, o) for n, o in zip(now, elder, strict=True)]
    assert pair.found is not None
    assert pair.found.difference == pytest.approx(np.mean(gap))
    assert pair.verdict == "worse"
    assert [row.labels.algorithm for row in found.only_first] == ["b"]
    assert compare_versions(results.store, "study", Only(algorithms=["b"])).found == ()


def test_versions_on_another_device_come_second(results: Any) -> None:
    here = results.row("a", code="1" * 32)
    there = results.row("a", code="1" * 32, device="cuda")
    now = results.row("a", code="2" * 32)
    only_device = results.row("b", device="cuda"), results.row("b")
    for year, keys in enumerate((here, there, now, *only_device)):
        started(results, keys, f"202{year}-01-01T00:00:00+00:00")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.second.records] == here
    assert [row.labels.algorithm for row in found.only_first] == ["b"]


def test_a_row_that_was_run_again_in_part_is_compared_in_part(results: Any) -> None:
    old = results.row("a", code="1" * 32)
    now = results.add("a", 0, code="2" * 32)
    started(results, old, "2020-01-01T00:00:00+00:00")
    started(results, [now], "2021-01-01T00:00:00+00:00")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.first.records] == [now]
    assert pair.found is not None
    assert pair.found.seeds == 1
    assert [len(row.records) for row in found.only_first] == [2]


def test_changes_are_short_and_leave_the_seed_out(results: Any) -> None:
    keys = [
        results.add("a", 0),
        results.add("a", 1, code="9" * 32, hp={"x": 2}, device="cuda"),
        results.add("a", 2),
    ]
    old, new, same = (results.store.find(key).identity for key in keys)
    code, *rest = changes(old, new)
    assert code.startswith("code of algorithm (c-")
    assert rest == ["algorithm.hp.x: absent -> 2", "numerics.device: 'cpu' -> 'cuda'"]
    assert changes(old, same) == []
