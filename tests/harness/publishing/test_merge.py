"""What becomes of a published row when a new one comes: the rules, one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_folder import LATER, SUITE, publish_results, published_in, row_of

from metabench.api.recipe import Recipe
from metabench.errors import EvidenceError
from metabench.publishing.files import FolderFiles, GivenFiles
from metabench.publishing.folder import Publication
from metabench.publishing.history import History
from metabench.publishing.merge import claims
from metabench.publishing.published import SUBMISSION, PublishedSource

Make = Callable[[], Any]


def changes(done: Publication) -> list[tuple[str, str]]:
    return [(change.what, change.labels.algorithm) for change in done.changes]


def only(done: Publication) -> tuple[str, str]:
    [change] = done.changes
    return change.what, change.reason


@pytest.fixture
def folder(tmp_path: Path, results: Any) -> Path:
    """With one row of two seeds."""
    results.row("maml", 2)
    publish_results(results, tmp_path / "tables")
    return tmp_path / "tables"


def history(folder: Path) -> History:
    return History.read(FolderFiles(folder), SUITE)


def test_a_new_row_is_added(folder: Path, results: Any) -> None:
    results.row("protonet", 2)
    assert sorted(changes(publish_results(results, folder))) == [
        ("added", "protonet"),
        ("unchanged", "maml"),
    ]
    assert len(published_in(folder).rows(SUITE)) == 2


def test_a_row_of_newer_code_replaces_and_is_noted(folder: Path, make_results: Make) -> None:
    old = row_of(folder, "maml")
    newer = make_results()
    keys = newer.row("maml", 2, code="9" * 32, started=LATER, skill=0.9)
    assert only(publish_results(newer, folder)) == ("replaced", "newer code, settings or data")
    assert [member.key for member in row_of(folder, "maml").members] == keys
    [note] = history(folder).replaced
    assert list(note.row.cells.values()) == [member.key for member in old.members]
    assert note.row.numbers["score"] == pytest.approx(old.score)
    made = [record.result.predictions for record in old.records]
    assert list(note.predictions.values()) == made
    assert list(note.by.values()) == keys
    there = {path.stem for path in (folder / "evidence/cells").iterdir()}
    assert there == set(keys)


@pytest.mark.parametrize(
    "changed", [{"content": "8" * 32}, {"recipe": Recipe(steps=900)}, {"hp": {"steps": 3}}]
)
def test_newer_settings_or_data_replace_too(
    folder: Path, make_results: Make, changed: dict[str, Any]
) -> None:
    newer = make_results()
    newer.row("maml", 2, started=LATER, **changed)
    assert only(publish_results(newer, folder))[0] == "replaced"


@pytest.mark.parametrize("started", ["2025-12-31T00:00:00+00:00", "2026-01-01T00:00:00+00:00"])
def test_a_row_of_older_code_does_not_replace(
    folder: Path, make_results: Make, started: str
) -> None:
    older = make_results()
    older.row("maml", 2, code="9" * 32, started=started)
    what, reason = only(publish_results(older, folder))
    assert (what, reason.partition(";")[0]) == ("kept", "the new one was not started later")


@pytest.mark.parametrize("started", ["", "yesterday"])
def test_a_row_of_unknown_age_does_not_replace(
    folder: Path, make_results: Make, started: str
) -> None:
    other = make_results()
    other.row("maml", 2, code="9" * 32, started=started)
    what, reason = only(publish_results(other, folder))
    assert what == "kept"
    assert "nobody knows which of both is newer" in reason


def test_more_seeds_extend_a_row_and_keep_what_was_published(
    folder: Path, make_results: Make
) -> None:
    more = make_results()
    keys = more.row("maml", 4)
    assert only(publish_results(more, folder)) == ("extended", "seeds 2, 3")
    row = row_of(folder, "maml")
    assert [member.labels.seed for member in row.members] == [0, 1, 2, 3]
    assert [member.key for member in row.members] == keys
    assert not history(folder).replaced


def test_fewer_seeds_change_nothing(folder: Path, make_results: Make) -> None:
    fewer = make_results()
    fewer.row("maml", 1)
    what, reason = only(publish_results(fewer, folder))
    assert what == "kept"
    assert "it has more seeds (2, the new one 1)" in reason


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_same_code_with_other_predictions_is_kept_out(
    folder: Path, make_results: Make, seeds: int
) -> None:
    before = row_of(folder, "maml").score
    other = make_results()
    other.row("maml", seeds, luck=1, started=LATER)
    what, reason = only(publish_results(other, folder))
    assert what == "kept"
    assert "the same code predicted otherwise" in reason
    assert row_of(folder, "maml").score == before
    assert only(publish_results(other, folder, replacing=True)) == ("replaced", "asked for")
    assert row_of(folder, "maml").score != before
    assert len(history(folder).replaced) == 1


def test_the_same_code_on_another_device_is_kept_out(folder: Path, make_results: Make) -> None:
    other = make_results()
    other.row("maml", 2, device="cuda", started=LATER)
    what, reason = only(publish_results(other, folder))
    assert what == "kept"
    assert "the same code, computed otherwise (device cpu -> cuda)" in reason


def test_a_less_checked_row_does_not_replace(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 2)
    second = make_results()
    second.row("maml", 2, started=LATER)
    publish_results(results, folder, again=second)
    assert row_of(folder, "maml").trust == "reproduced"
    newer = make_results()
    newer.row("maml", 2, code="9" * 32, started=LATER)
    what, reason = only(publish_results(newer, folder))
    assert (what, reason.partition(";")[0]) == ("kept", "it is reproduced, the new one recomputed")
    more = make_results()
    more.row("maml", 3)
    assert only(publish_results(more, folder))[0] == "kept"
    assert only(publish_results(newer, folder, replacing=True))[0] == "replaced"
    assert row_of(folder, "maml").trust == "recomputed"


def test_a_newer_row_that_was_run_again_replaces_a_reproduced_one(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 2)
    second, newer, newest = make_results(), make_results(), make_results()
    second.row("maml", 2, started=LATER)
    publish_results(results, folder, again=second)
    newer.row("maml", 2, code="9" * 32, started=LATER)
    newest.row("maml", 2, code="9" * 32, started="2026-03-03T00:00:00+00:00")
    assert only(publish_results(newer, folder, again=newest))[0] == "replaced"
    assert row_of(folder, "maml").trust == "reproduced"


def test_what_is_not_finished_is_left_out_and_named(folder: Path, results: Any) -> None:
    results.add("broken", status="nan")
    results.row("half", 2)
    results.add("half", 2, status="missing")
    done = publish_results(results, folder)
    left = {c.labels.algorithm: c.reason for c in done.changes if c.what == "left out"}
    assert left == {"broken": "nan: 1 of 1 training runs", "half": "missing: 1 of 3 training runs"}
    assert {row.labels.algorithm for row in published_in(folder).rows(SUITE)} == {"maml"}


def test_a_row_of_two_codes_and_one_without_digests_are_left_out(
    folder: Path, results: Any
) -> None:
    results.add("mixed", 0, code="1" * 32)
    results.add("mixed", 1, code="2" * 32)
    results.row("earlier", 1, vouched=False)
    done = publish_results(results, folder)
    left = [c for c in done.changes if c.what == "left out"]
    assert [c.labels.algorithm for c in left].count("mixed") == 2
    [earlier] = [c for c in left if c.labels.algorithm == "earlier"]
    assert "does not vouch for its predictions" in earlier.reason


def test_nothing_to_publish_is_an_error(tmp_path: Path, results: Any) -> None:
    results.add("broken", status="nan")
    with pytest.raises(EvidenceError, match="nothing of suite 'study' can be published") as found:
        publish_results(results, tmp_path / "tables")
    assert found.value.hint == "nan: 1 of 1 training runs"


def test_new_times_alone_change_nothing_unless_asked_for(folder: Path, make_results: Make) -> None:
    slower = make_results()
    slower.row("maml", 2, train_s=99.0, started=LATER)
    assert only(publish_results(slower, folder)) == ("unchanged", "")
    assert row_of(folder, "maml").train_s == 2.0
    assert only(publish_results(slower, folder, replacing=True))[0] == "replaced"
    assert row_of(folder, "maml").train_s == 99.0


def test_fewer_seeds_of_newer_code_do_not_replace(folder: Path, make_results: Make) -> None:
    newer = make_results()
    newer.row("maml", 1, code="9" * 32, started=LATER)
    what, reason = only(publish_results(newer, folder))
    assert (what, reason.partition(";")[0]) == ("kept", "it has more seeds (2, the new one 1)")
    assert only(publish_results(newer, folder, replacing=True))[0] == "replaced"


def test_a_bundle_cannot_say_that_it_was_reproduced(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    results.row("maml", 1)
    second = make_results()
    second.row("maml", 1, started=LATER)
    publish_results(results, tmp_path / "t", again=second)
    files = {n: FolderFiles(tmp_path / "t").read(n) for n in FolderFiles(tmp_path / "t").names()}
    for extra, trust in (({}, "reproduced"), ({SUBMISSION: b"{}"}, "recomputed")):
        source = PublishedSource.read(GivenFiles({**files, **extra}, "handed in"), [SUITE])
        [claim], _ = claims(source, SUITE)
        assert claim.trust == trust
