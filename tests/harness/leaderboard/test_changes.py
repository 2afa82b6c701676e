"""Rows compared with what they were: folders row by row, versions of the code in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from metabench.episodes.protocol import Protocol
from metabench.errors import UsageError
from metabench.leaderboard.changes import Side, changes, compare_sides, compare_versions
from metabench.leaderboard.compare import SAME, Earlier
from metabench.leaderboard.names import Only
from metabench.leaderboard.source import StoreSource

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)


def scores(results: Any, key: str) -> Any:
    """(E,) accuracies, by hand."""
    made = results.predicted[key]
    return (made.predictions == made.targets).mean(axis=1)


def sides(old: Any, new: Any) -> Any:
    before, now = (Side.of(StoreSource(r.store), "study") for r in (old, new))
    return compare_sides(before, now)


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


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ({}, {}, "same predictions"),
        ({}, {"luck": 1}, "other labels"),
        ({"skill": 1.0, "sure": True}, {"luck": 1}, "same labels, other probabilities"),
        ({"skill": 1.0, "sure": True}, {"sure": False}, "same labels, other probabilities"),
        ({"skill": 1.0}, {"disjoint": 9}, "same labels, but not of disjoint episodes"),
    ],
)
def test_same_predictions_are_the_same_in_every_number(
    make_results: Callable[[], Any], old: dict[str, Any], new: dict[str, Any], verdict: str
) -> None:
    folders = make_results(), make_results()
    for results, options in zip(folders, (old, old | new), strict=True):
        results.row("a", **options)
    [pair] = sides(*folders).found
    told = pair.verdict if pair.verdict in SAME else "other labels"
    assert told == verdict


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
    assert notes["broken"] == "new: nan (3 of 3)"
    assert [row.labels.algorithm for row in found.only_first] == ["come"]
    assert [row.labels.algorithm for row in found.only_second] == ["gone"]
    nothing = make_results()
    nothing.row("another")
    with pytest.raises(UsageError, match="no row in common"):
        sides(old, nothing)


# Versions in one folder.


def test_a_row_is_compared_with_the_last_version_before_it(results: Any) -> None:
    results.row("a", code="1" * 32, protocol=LONG, started="2020")
    elder = results.row("a", code="2" * 32, skill=0.9, protocol=LONG, started="2021")
    results.row("a", code="4" * 32, hp={"x": 1}, protocol=LONG, started="2022")
    now = results.row("a", code="3" * 32, protocol=LONG, started="2023")
    results.row("b", protocol=LONG)
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.first.records] == now
    assert [record.key for record in pair.second.records] == elder
    gap = [scores(results, n) - scores(results, o) for n, o in zip(now, elder, strict=True)]
    assert pair.found is not None
    assert pair.found.difference == pytest.approx(np.mean(gap))
    assert pair.verdict == "worse"
    assert [row.labels.algorithm for row in found.only_first] == ["b"]
    assert pair.earlier == Earlier("2021", 2)
    assert compare_versions(results.store, "study", Only(algorithms=["b"])).found == ()


def test_versions_on_another_device_come_second(results: Any) -> None:
    here = results.row("a", code="1" * 32, started="2020")
    results.row("a", code="1" * 32, device="cuda", started="2021")
    results.row("a", code="2" * 32, started="2022")
    results.row("b", device="cuda", started="2020")
    results.row("b", started="2021")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.second.records] == here
    assert [row.labels.algorithm for row in found.only_first] == ["b"]


def test_a_row_that_was_run_again_in_part_is_compared_in_part(results: Any) -> None:
    results.row("a", code="1" * 32, started="2020")
    now = results.add("a", 0, code="2" * 32, started="2021")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert [record.key for record in pair.first.records] == [now]
    assert pair.found is not None
    assert pair.found.seeds == 1
    assert (pair.note, found.only_first) == ("2 seeds not run again", ())


def test_an_attempt_that_hardly_finished_is_not_how_a_row_was(results: Any) -> None:
    whole = results.row("a", code="1" * 32, started="2020")
    results.add("a", 0, code="2" * 32, started="2021")
    for seed in (1, 2):
        results.add("a", seed, code="2" * 32, status="nan", started="2021")
    results.row("a", code="3" * 32, started="2022")
    [pair] = compare_versions(results.store, "study").found
    assert [record.key for record in pair.second.records] == whole
    assert pair.earlier == Earlier("2020", 2)


def test_a_row_that_fails_altogether_has_an_earlier_version(results: Any) -> None:
    results.row("a", code="1" * 32, started="2020")
    results.row("a", code="2" * 32, status="error", started="2021")
    found = compare_versions(results.store, "study")
    [pair] = found.found
    assert (pair.statuses, pair.note) == (("error", "ok"), "new: error (3 of 3)")
    assert found.only_first == ()


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
