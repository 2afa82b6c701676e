"""`publishing.verify`: what single checks find, and what they leave alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forging import Forgery
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_bundle import small_bundle

from metabench.episodes.protocol import Protocol
from metabench.errors import EvidenceError, StoreError
from metabench.plugins import registry
from metabench.publishing.verify import (
    CannotCheckError,
    Report,
    episodes,
    plausible,
    verify_files,
)
from metabench.publishing.verify.identities import _named_in
from metabench.publishing.verify.numbers import _same_rounded
from metabench.publishing.verify.report import require
from metabench.registry import Registry
from metabench.store.results import EpisodeResults


def row_of(*results: EpisodeResults) -> Any:
    return SimpleNamespace(proofs=[SimpleNamespace(episodes=one) for one in results])


def balanced(episodes: int, ways: int = 5, queries: int = 15, seed: int = 0) -> EpisodeResults:
    """Episodes of shuffled queries, predicted by chance."""
    rng = np.random.default_rng(seed)
    targets = rng.permuted(np.tile(np.repeat(np.arange(ways), queries), (episodes, 1)), axis=1)
    return EpisodeResults(targets, rng.integers(0, ways, targets.shape), targets)


def with_hits(results: EpisodeResults, hits: int, seed: int = 0) -> EpisodeResults:
    """Exactly so many right in each episode."""
    rng = np.random.default_rng(seed)
    wrong = (results.targets + rng.integers(1, 5, results.targets.shape)) % 5
    rank = rng.permuted(np.tile(np.arange(wrong.shape[1]), (len(wrong), 1)), axis=1)
    return replace(results, predictions=np.where(rank < hits, results.targets, wrong))


@pytest.mark.parametrize("hits", [15, 45, 70])
def test_a_spread_smaller_than_chance_allows(hits: int) -> None:
    """A score at chance, or above it, that is the same in every episode."""
    results = with_hits(balanced(200), hits)
    assert results.scores("accuracy").std() < 1e-12
    with pytest.raises(EvidenceError, match=r"its episodes vary by 0\.0000 hits"):
        plausible._spread(row_of(results))


@settings(max_examples=40, deadline=None)
@example(2, 2, 0.0, 0.25, 0)
@given(
    st.integers(2, 300),
    st.integers(2, 15),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.4),
    st.integers(0, 2**32 - 1),
)
def test_the_spread_of_what_was_really_drawn_holds(
    episodes: int, queries: int, skill: float, unequal: float, seed: int
) -> None:
    """Whatever the skill is and however it differs from class to class and task to task."""
    rng = np.random.default_rng(seed)
    results = balanced(episodes, queries=queries, seed=seed)
    of_class = np.clip(skill + unequal * rng.standard_normal((episodes, 5)), 0, 1)
    share = np.take_along_axis(of_class, results.targets, axis=1)
    right = rng.random(share.shape) < share
    predictions = np.where(right, results.targets, (results.targets + 1) % 5)
    try:
        plausible._spread(row_of(replace(results, predictions=predictions)))
    except CannotCheckError:
        assert skill + unequal in (skill, 1.0, 0.0) or episodes < 30 or not 0.1 < skill < 0.9


def test_items_drawn_without_replacement_vary_less_and_hold() -> None:
    """Classes of 20 items of which 15 are asked: the hits of a class hardly vary."""
    rng = np.random.default_rng(0)
    results = balanced(1000)
    known = rng.random((10, 20)) < 0.7  # which items of which class are recognised
    right = np.empty(results.targets.shape, bool)
    for episode, targets in enumerate(results.targets):
        classes = rng.permutation(10)[:5]
        for label, of in enumerate(classes):
            right[episode, targets == label] = known[of, rng.permutation(20)[:15]]
    predictions = np.where(right, results.targets, (results.targets + 1) % 5)
    plausible._spread(row_of(replace(results, predictions=predictions)))


def test_variances_are_those_of_a_loop_over_classes() -> None:
    """Unbiased, of classes with as many queries as the episode happens to have."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 7, (40, 20))
    results = EpisodeResults(targets, rng.integers(0, 7, targets.shape), targets)
    hits, expected = plausible._variances(results)
    right = results.predictions == targets
    total = 0.0
    for episode, told in enumerate(right):
        for label in range(7):
            own = told[targets[episode] == label]
            total += len(own) * own.var(ddof=1) if len(own) > 1 else 0.0
    assert expected == pytest.approx(total / 40, rel=1e-12)
    assert hits.tolist() == right.sum(1).tolist()


def test_a_protocol_of_very_many_ways_takes_no_longer() -> None:
    """Of 32,768 ways, 30 episodes: a loop over them would take half an hour."""
    ways = 2**15
    results = balanced(30, ways, 1)
    protocol = Protocol(ways=ways, shots=1, queries=1, episodes=30)
    started = time.process_time()
    episodes._in_range(results, protocol)
    episodes._as_many_of_each(results, protocol)
    with pytest.raises(CannotCheckError):
        plausible._spread(row_of(results))
    assert time.process_time() - started < 10
    one = results.targets.copy()
    one[3, 5] = one[3, 6]
    with pytest.raises(EvidenceError, match="other than 1 queries a class"):
        episodes._as_many_of_each(replace(results, targets=one), protocol)


def test_one_class_for_everything_says_nothing_of_spread() -> None:
    """What has learnt nothing may be at chance, the same in every episode."""
    results = balanced(100)
    constant = replace(results, predictions=np.zeros_like(results.targets))
    with pytest.raises(CannotCheckError):
        plausible._spread(row_of(constant))


def test_a_test_that_breaks_does_not_hold() -> None:
    report = Report("x")

    def raises(error: Exception) -> Any:
        def test() -> None:
            raise error

        return test

    for error in (ValueError("a"), RecursionError(), KeyError("b"), StoreError("c")):
        assert not report.check("c", "w", raises(error))
    assert [finding.state for finding in report.findings] == ["does not hold"] * 4
    assert not report.ok
    other = Report("x")
    other.check("c", "w", raises(CannotCheckError("not here")))
    assert other.ok
    assert other.check("c", "v", lambda: require(True, "no"))
    assert other.summary() == [
        {"check": "c", "what": "v", "result": "holds", "why": None},
        {"check": "c", "what": "w", "result": "not checked", "why": "not here"},
    ]


def test_without_plugins_and_data_much_still_holds(data: Path) -> None:
    """Nobody who hands in a bundle can have anything imported: what isn't installed isn't run."""
    report = verify_files(Forgery(small_bundle(data)).given(), Registry(), data)
    assert report.ok
    left = {finding.check for finding in report.findings if finding.state == "not checked"}
    assert left == {"settings", "data"}


def test_a_data_set_that_is_not_here_is_not_downloaded(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench_plugins.datasets.quickdraw import QuickDraw

    def prepare(self: object, report: object = None) -> None:
        raise AssertionError("it was prepared")

    monkeypatch.setattr(QuickDraw, "availability", lambda self: "missing")
    monkeypatch.setattr(QuickDraw, "prepare", prepare)
    report = verify_files(Forgery(small_bundle(data)).given(), registry(), data)
    found = [finding for finding in report.findings if finding.check == "data"]
    assert {finding.state for finding in found} == {"not checked"}
    assert "isn't on this machine" in found[0].why
    assert report.ok


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("conv4-32", "conv4"),
        ("conv4", "conv4"),
        ("resnet12 (x)", "resnet12"),
        ("my-net", None),
        ("wrn-28-10-wide", "wrn-28-10"),
    ],
)
def test_the_plugin_that_a_label_names(label: str, expected: str | None) -> None:
    assert _named_in(label, registry().backbones) == expected


def test_two_roundings_of_one_number() -> None:
    exact = [0.12345, 0.5]
    assert _same_rounded("0.1234", "0.1235", exact)
    assert not _same_rounded("0.5001", "0.5000", exact)
    assert not _same_rounded("0.1233", "0.1235", exact)
    assert not _same_rounded("0.12345", "0.1235", exact)
    assert not _same_rounded("=1", "0.1235", exact)
