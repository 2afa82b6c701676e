"""A folder of published tables: twice changes nothing, and interruptions are mended."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forgery
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
from metabench.publishing.published import PublishedSource, stem_of, suites_in, table_name
from metabench.publishing.verify import verify_files
from metabench.publishing.verify.episodes import DataHere
from metabench.registry import Registry
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


def test_replacing_in_one_suite_keeps_the_reproductions_of_another(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    results.row("maml", 1, suite="one")
    second, same = make_results(), make_results()
    second.row("maml", 1, suite="one", started=LATER)
    publish_results(results, folder, suite="one", again=second)
    same.row("maml", 1, suite="two", started=LATER)
    publish_results(same, folder, suite="two", replacing=True)
    assert row_of(folder, "maml", "one").trust == "reproduced"
    assert row_of(folder, "maml", "two").trust == "reproduced"


def test_a_row_of_another_suite_that_changes_is_noted_in_its_history(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder = tmp_path / "tables"
    [key, *_] = results.row("maml", 2, suite="one")
    results.row("protonet", 1, suite="one")
    publish_results(results, folder, suite="one")
    before = row_of(folder, "maml", "one")
    other = make_results()
    other.row("maml", 1, suite="two", luck=1)
    publish_results(other, folder, suite="two", replacing=True)
    [note] = History.read(FolderFiles(folder), "one").replaced
    made = [record.result.predictions for record in before.records]
    assert list(note.predictions.values()) == made
    assert note.by_predictions == {"0": other.predicted[key].digest, "1": made[1]}
    assert note.row.numbers["score"] == pytest.approx(before.score)
    assert "suite two replaced cells of it" in note.reason
    assert History.read(FolderFiles(folder), "two").replaced == ()


def test_every_replacement_is_noted_though_rows_come_back(
    tmp_path: Path, results: Any, make_results: Make
) -> None:
    folder, other = tmp_path / "tables", make_results()
    results.row("maml", 1)
    other.row("maml", 1, luck=1)
    results.row("protonet", 1)
    for made in (results, other, results, other, other):
        publish_results(made, folder, replacing=True)
    own, others = ([r.predicted[k].digest] for r in (results, other) for k in list(other.predicted))
    told = [
        list(n.by_predictions.values()) for n in History.read(FolderFiles(folder), SUITE).replaced
    ]
    assert told == [others, own, others]


@pytest.mark.parametrize(
    "suite", ["README", "ReadMe", "measurements", "Evidence", "LICENSE", "index", "Submission"]
)
def test_a_suite_takes_no_other_files_place(tmp_path: Path, results: Any, suite: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "README.md").write_text("of all tables")
    results.row("maml", 1, suite=suite)
    publish_results(results, folder, suite=suite)
    assert (folder / "README.md").read_text() == "of all tables"
    assert not (folder / f"{suite}.json").exists()
    assert suites_in(FolderFiles(folder)) == [suite]
    assert stem_of("readme-2") == "readme-2"


def test_twice_on_another_machine_changes_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no data sets, and its sums differ in the last digit."""
    source = StoreSource(Store.open(small_run(data), create=False))
    folder, bare = tmp_path / "tables", DataHere(Registry(), tmp_path / "none")
    publish(source, SMALL, folder, DataHere(registry(), data))
    before, real = content(folder), module.published

    def otherwise(suite: str, rows: Any, of: Any) -> Any:
        table = real(suite, rows, of)
        near = [
            row.model_copy(
                update={
                    "numbers": {
                        name: value * (1 + 1e-14) if isinstance(value, float) else value
                        for name, value in row.numbers.items()
                    }
                }
            )
            for row in table.rows
        ]
        return table.model_copy(update={"rows": tuple(near)})

    monkeypatch.setattr(module, "published", otherwise)
    assert publish(source, SMALL, folder, bare).written == ()
    assert content(folder) == before
    # What isn't true any more is made anew, and all of it if somebody asks.
    (folder / f"{SMALL}.md").write_text("edited")
    assert f"{SMALL}.md" in publish(source, SMALL, folder, bare).written
    assert publish(source, SMALL, folder, bare, replacing=True).written == ()
    asked = publish(source, SMALL, folder, DataHere(registry(), data), replacing=True)
    assert f"{SMALL}.datasheet.md" in asked.written
    assert table_name(SMALL) not in asked.written


def test_a_folder_that_would_not_verify_is_not_written(tmp_path: Path, data: Path) -> None:
    """Predictions that stand in the table, handed in under another algorithm's name."""
    folder, here = tmp_path / "tables", DataHere(registry(), data)

    def check(files: Any) -> None:
        wrong = verify_files(files, registry(), data).wrong()
        if wrong:
            raise EvidenceError("; ".join(f"{f.check}: {f.why}" for f in wrong))

    publish(
        StoreSource(Store.open(small_run(data), create=False)), SMALL, folder, here, check=check
    )
    before, copy = content(folder), Forgery(small_bundle(data))
    row = copy.row_of("protonet")
    for seed in range(3):
        copy.replace(row, seed, identity=lambda facts: facts["algorithm"].update(name="maml"))
    copy.change_row(lambda told: told["labels"].update(algorithm="maml"), row)
    named = {"command": copy.table["rows"][row]["command"].replace("protonet", "maml")}
    copy.change_row(lambda told: told.update(named), row)
    handed_in = PublishedSource.read(copy.renumbered().given())
    with pytest.raises(EvidenceError, match="predictions are its own: "):
        publish(handed_in, SMALL, folder, here, check=check)
    assert content(folder) == before
