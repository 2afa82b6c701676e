"""Cells that were run again: what makes a row reproduced, and what doesn't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_folder import LATER, content, publish_results, row_of

from metabench.errors import UsageError
from metabench.publishing.reproduction import ELSEWHERE

Make = Callable[[], Any]
LATEST = "2026-03-03T00:00:00+00:00"


def test_the_same_predictions_make_a_row_reproduced(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 3, disjoint=3, sure=True)
    results.row("protonet", 3)
    second = make_results()
    second.add("maml", 1, disjoint=3, sure=True, started=LATER)
    publish_results(results, folder)
    done = publish_results(results, folder, again=second)
    [(labels, [made])] = done.reproductions
    assert (labels.algorithm, made.agreement, made.difference, done.ok) == ("maml", 1.0, 0.0, True)
    assert {change.what for change in done.changes} == {"unchanged"}
    assert row_of(folder, "maml").trust == "reproduced"
    assert row_of(folder, "protonet").trust == "recomputed"
    before = content(folder)
    assert publish_results(results, folder, again=second).written == ()
    # Nor does a third run that says the same, on another day.
    third = make_results()
    third.add("maml", 1, disjoint=3, sure=True, started=LATEST)
    assert publish_results(results, folder, again=third).written == ()
    assert content(folder) == before


def test_other_predictions_are_told_and_stay_on_record(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    [key] = results.row("maml", 1)
    second, third = make_results(), make_results()
    second.row("maml", 1, luck=1, started=LATER)
    third.row("maml", 1, started=LATEST)
    done = publish_results(results, folder, again=second)
    [(_, [made])] = done.reproductions
    told = second.predicted[key].predictions == results.predicted[key].predictions
    assert not done.ok
    assert made.agreement == pytest.approx(told.mean())
    assert row_of(folder, "maml").trust == "recomputed"
    assert publish_results(results, folder, again=third).ok
    assert row_of(folder, "maml").trust == "recomputed", "a success doesn't undo a failure"
    publish_results(results, folder, again=third, replacing=True)
    assert row_of(folder, "maml").trust == "reproduced"


def test_a_copy_of_a_run_is_no_second_run(tmp_path: Path, results: Any, make_results: Make) -> None:
    results.row("maml", 2)
    copy = make_results()
    copy.row("maml", 2)
    done = publish_results(results, tmp_path / "tables", again=copy)
    assert done.reproductions == ()
    assert row_of(tmp_path / "tables", "maml").trust == "recomputed"
    with pytest.raises(UsageError, match="is the result folder that is published"):
        publish_results(results, tmp_path / "tables", again=results)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("AVX2", "AVX2", True), ("AVX2", "AVX512", False), ("", "", False)],
)
def test_a_cpu_of_other_vector_instructions_is_another_kind_of_device(
    tmp_path: Path, results: Any, make_results: Make, one: str, other: str, same: bool
) -> None:
    """It rounds otherwise; and where nobody noted which it had, that can't be ruled out."""
    again, folder = make_results(), tmp_path / "tables"
    results.add("maml", instructions=one)
    again.add("maml", instructions=other, started=LATER)
    [(_, [made])] = publish_results(results, folder, again=again).reproductions
    assert (made.same_device, made.holds) == (same, True)
    assert row_of(folder, "maml").trust == "reproduced"


def test_a_run_on_another_kind_of_device_is_compared_within_the_tolerance(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 2)
    near, far = make_results(), make_results()
    near.add("maml", 0, device="cuda", started=LATER)
    [first] = near.predicted
    published = publish_results(results, folder).changes
    assert len(published) == 1
    record = near.store.find(first)
    assert record is not None
    [old] = [r for r in row_of(folder, "maml").records if r.identity.seed == 0]
    moved = near.predicted[first].scores("accuracy").mean()
    moved -= results.predicted[old.key].scores("accuracy").mean()
    done = publish_results(results, folder, again=near)
    [(_, [made])] = done.reproductions
    assert (made.key, made.device, made.same_device) == (old.key, "cuda", False)
    assert made.difference == pytest.approx(moved)
    assert made.holds == done.ok == (abs(moved) <= ELSEWHERE)
    # Other code, or another seed, is another cell.
    far.add("maml", 5, device="cuda", started=LATER)
    far.add("maml", 0, code="9" * 32, device="cuda", started=LATER)
    assert publish_results(results, folder, again=far).reproductions == ()
