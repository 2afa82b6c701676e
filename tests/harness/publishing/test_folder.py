"""A folder of published tables: twice changes nothing, and interruptions are mended."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_folder import LATER, SUITE, content, publish_results, published_in, row_of
from small_bundle import SUITE as SMALL
from small_bundle import small_bundle, small_run

from metabench.errors import EvidenceError
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource
from metabench.plugins import registry
from metabench.publishing import folder as module
from metabench.publishing.evidence import Proof
from metabench.publishing.files import FolderFiles, GivenFiles
from metabench.publishing.folder import publish
from metabench.publishing.history import History
from metabench.publishing.published import PublishedSource
from metabench.publishing.verify import verify_files
from metabench.publishing.verify.episodes import DataHere
from metabench.store.store import Store

Make = Callable[[], Any]


@pytest.fixture
def varied(results: Any) -> Any:
    """Rows with and without probabilities and disjoint episodes."""
    results.row("maml", 3, disjoint=4)
    results.row("protonet", 3, disjoint=4, sure=True, skill=0.8)
    results.row("fixed", 1, inference="transductive")
    for key in results.row("timed", 1):
        results.time(key, 1.5, 0.5)
    return results


def test_twice_changes_not_one_byte(tmp_path: Path, varied: Any) -> None:
    folder = tmp_path / "tables"
    first = publish_results(varied, folder)
    before = content(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert set(first.written) == set(before)
    for replacing in (False, True):
        again = publish_results(varied, folder, replacing=replacing)
        assert {change.what for change in again.changes} == {"unchanged"}
        assert (again.written, again.removed) == ((), ())
    assert content(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_published_rows_are_those_of_the_result_folder(tmp_path: Path, varied: Any) -> None:
    publish_results(varied, tmp_path / "tables")
    published = [row.to_dict() for row in published_in(tmp_path / "tables").rows(SUITE)]
    assert published == [row.to_dict() for row in table_rows(StoreSource(varied.store), SUITE)]
    assert any(row["adapt_ms"] == 1.5 for row in published)


def test_a_real_run_is_published_verifies_and_is_known_again(tmp_path: Path, data: Path) -> None:
    store = Store.open(small_run(data), create=False)
    folder, here = tmp_path / "tables", DataHere(registry(), data)
    done = publish(StoreSource(store), SMALL, folder, here)
    assert [change.what for change in done.changes] == ["added", "added"]
    report = verify_files(FolderFiles(folder), registry(), data)
    assert report.wrong() == []
    before = content(folder)
    assert publish(StoreSource(store), SMALL, folder, here).written == ()
    handed_in = PublishedSource.read(GivenFiles(small_bundle(data), "bundle"))
    again = publish(handed_in, SMALL, folder, here)
    assert ({change.what for change in again.changes}, again.written) == ({"unchanged"}, ())
    assert content(folder) == before
    sheet = (folder / f"{SMALL}.datasheet.md").read_text()
    assert "- licence: CC BY 4.0, Google" in sheet
    assert "- test: 52 classes, 5200 items" in sheet


@pytest.mark.parametrize("after", [0, 1, 3, 6, -2, -1])
def test_an_interrupted_publication_is_completed_by_the_next(
    tmp_path: Path, make_results: Make, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    old, new = make_results(), make_results()
    old.row("maml", 2)
    new.row("maml", 2, code="9" * 32, started=LATER)
    new.row("protonet", 1, disjoint=3)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "tables"
    publish_results(old, undisturbed)
    shutil.copytree(undisturbed, folder)
    writes = len(publish_results(new, undisturbed).written)
    _interrupt(monkeypatch, new, folder, after % writes)
    assert [row.labels.algorithm for row in published_in(folder).rows(SUITE)] == ["maml"]
    publish_results(new, folder)
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize("after", [0, 1, 2, 3, -1])
def test_an_interrupted_replacement_of_evidence_is_completed_by_the_next(
    tmp_path: Path, make_results: Make, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The same cells with other predictions: their files are overwritten."""
    old, new = make_results(), make_results()
    old.row("maml", 1)
    new.row("maml", 1, luck=1)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "tables"
    publish_results(old, undisturbed)
    shutil.copytree(undisturbed, folder)
    writes = len(publish_results(new, undisturbed, replacing=True).written)
    _interrupt(monkeypatch, new, folder, after % writes, replacing=True)
    publish_results(new, folder, replacing=True)
    tables = {n: d for n, d in content(folder).items() if not n.endswith(".history.json")}
    assert tables == {n: d for n, d in content(undisturbed).items() if n in tables}
    [note, *_] = History.read(FolderFiles(folder), SUITE).replaced
    assert note.predictions == {"0": next(iter(old.predicted.values())).digest}


def _interrupt(
    monkeypatch: pytest.MonkeyPatch, results: Any, folder: Path, after: int, **options: Any
) -> None:
    real, count = module.replace_bytes, 0

    def failing(path: Path, data: bytes, unique: str) -> None:
        nonlocal count
        if count == after:
            raise KeyboardInterrupt
        count += 1
        real(path, data, unique)

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            publish_results(results, folder, **options)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path, results: Any) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 1)
    publish_results(results, folder)
    before = content(folder)
    stray = folder / "evidence/cells" / f"{'0' * 32}.parquet"
    stray.write_bytes(b"half")
    (folder / "README.md").write_text("tables")
    done = publish_results(results, folder)
    assert done.removed == (stray.relative_to(folder).as_posix(),)
    assert content(folder) == before | {"README.md": content(folder)["README.md"]}


def test_tables_share_evidence_and_one_does_not_take_it_from_the_other(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 1, suite="one")
    publish_results(results, folder, suite="one")
    slower = make_results()
    [key] = slower.row("maml", 1, suite="two", train_s=99.0, command="metabench run --suite two")
    publish_results(slower, folder, suite="two")
    assert row_of(folder, "maml", "two").train_s == 2.0, "the evidence was there already"
    newer = make_results()
    newer.row("maml", 1, suite="two", code="9" * 32, started=LATER)
    publish_results(newer, folder, suite="two")
    assert row_of(folder, "maml", "one").members[0].key == key


def test_a_cell_of_two_tables_has_one_content(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 1, suite="one")
    publish_results(results, folder, suite="one")
    other = make_results()
    other.row("maml", 1, suite="two", luck=1)
    with pytest.raises(EvidenceError, match="nothing of suite 'two'") as found:
        publish_results(other, folder, suite="two")
    assert found.value.hint == "suite one has its seed 0 otherwise"
    publish_results(other, folder, suite="two", replacing=True)
    assert row_of(folder, "maml", "one").score == row_of(folder, "maml", "two").score
    assert published_in(folder, "one").tables["one"].rows[0].numbers["score"] == pytest.approx(
        row_of(folder, "maml", "two").score
    )


def test_damaged_evidence_stops_and_can_be_replaced(tmp_path: Path, results: Any) -> None:
    folder = tmp_path / "tables"
    [key] = results.row("maml", 1)
    publish_results(results, folder)
    before = content(folder)
    (folder / f"evidence/cells/{key}.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvidenceError, match=key) as found:
        publish_results(results, folder)
    assert "--replace" in found.value.hint
    publish_results(results, folder, replacing=True)
    assert Proof.read(FolderFiles(folder), key)
    changed = {n for n, d in content(folder).items() if before.get(n) != d}
    assert f"evidence/cells/{key}.parquet" not in changed


def test_names_of_others_stay_text_and_files_stay_inside(tmp_path: Path, results: Any) -> None:
    folder = tmp_path / "tables"
    evil = "../=x <script>|`\x1b[31m"
    results.row('=HYPERLINK("http://x","y")', 1, suite=evil, variant="[/b]<b>|\x1b[31m")
    publish_results(results, folder, suite=evil)
    assert {path.parent for path in tmp_path.rglob("*.csv")} == {folder}
    csv, page, sheet = _texts(folder)
    for text in (csv, page, sheet):
        assert "\x1b" not in text
    # A fenced block is shown as it is.
    page = re.sub(r"```sh\n.*?\n```\n", "", page, flags=re.DOTALL)
    assert "<script>" not in page + sheet
    assert "<b>" not in page + sheet
    assert ',"=HYPERLINK' not in csv
    assert "'=HYPERLINK" in csv


def _texts(folder: Path) -> list[str]:
    [csv] = folder.glob("*.csv")
    stem = csv.name.removesuffix(".csv")
    return [(folder / f"{stem}{end}").read_text() for end in (".csv", ".md", ".datasheet.md")]
