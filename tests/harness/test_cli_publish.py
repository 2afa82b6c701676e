"""`metabench publish`: what it prints, what it leaves, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from forging import Forgery, edited
from small_bundle import SUITE, small_bundle

from metabench.cli import main
from metabench.publishing import rerun, verify
from metabench.publishing.archive import archive_bytes
from metabench.publishing.published import SUBMISSION
from metabench.publishing.verify import CannotCheckError, Report

Run = Callable[..., Result]


@pytest.fixture
def run(results: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In an empty folder, with `results` as the result folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("METABENCH_OUT", str(results.store.root))
    monkeypatch.setenv("METABENCH_DATA", str(data))
    return lambda *args: CliRunner().invoke(main, ["publish", *map(str, args)])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found wrong, not even of results that are made up."""
    monkeypatch.setattr(verify, "verify_files", lambda files, *_: Report(files.place))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.usefixtures("taken")
def test_it_needs_a_folder_that_is_there_or_named(run: Run, results: Any) -> None:
    results.row("maml", 1)
    done = run("-s", "study")
    assert done.exit_code == 2
    assert "there is no folder leaderboards here" in done.stderr
    assert run("-s", "study", "--to", "made/by/it").exit_code == 0
    assert Path("made/by/it/study.csv").is_file()
    Path("leaderboards").mkdir()
    done = run("-s", "study")
    assert done.exit_code == 0
    assert {"study.csv", "study.md", "study.json", "evidence"} <= {
        path.name for path in Path("leaderboards").iterdir()
    }


@pytest.mark.usefixtures("taken")
def test_it_says_what_became_of_each_row(run: Run, results: Any) -> None:
    results.row("maml", 1)
    results.add("broken", status="nan")
    done = run("-s", "study", "--to", "t", "--format", "csv")
    told = {row["algorithm"]: (row["result"], row["why"]) for row in rows(done.stdout)}
    assert told == {"maml": ("added", ""), "broken": ("left out", "nan: 1 of 1 training runs")}
    assert "t: 8 files written, 0 removed" in done.stderr
    done = run("-s", "study", "--to", "t", "--json")
    assert {row["result"] for row in json.loads(done.stdout)} == {"unchanged", "left out"}
    assert "t: 0 files written, 0 removed" in done.stderr


@pytest.mark.usefixtures("taken")
def test_a_name_of_others_is_printed_as_text(run: Run, results: Any) -> None:
    results.row("=HYPERLINK(1)", 1, variant="[/b]<script>\x1b[31m")
    printed = run("-s", "study", "--to", "t", "--format", "csv").stdout
    assert "\x1b" not in printed
    assert rows(printed)[0]["algorithm"] == "'=HYPERLINK(1)"
    assert "<script>" not in run("-s", "study", "--to", "t", "--format", "markdown").stdout


@pytest.mark.usefixtures("taken")
def test_a_second_run_that_differs_is_an_error(
    run: Run, results: Any, make_results: Callable[[], Any]
) -> None:
    results.row("maml", 2)
    same, other = make_results(), make_results()
    same.row("maml", 2, started="2026-02-02T00:00:00+00:00")
    other.row("maml", 2, luck=1, started="2026-02-02T00:00:00+00:00")
    done = run("-s", "study", "--to", "t", "--again", same.store.root, "--format", "csv")
    assert done.exit_code == 0
    assert [row["result"] for row in rows(done.stdout)] == ["added", "reproduced"]
    done = run("-s", "study", "--to", "t", "--again", other.store.root, "--format", "csv")
    assert done.exit_code == 1
    assert [row["result"] for row in rows(done.stdout)] == ["unchanged", "differs", "differs"]
    assert "on the same kind of device" in rows(done.stdout)[1]["why"]


@pytest.mark.usefixtures("taken")
def test_it_writes_an_archive(run: Run, results: Any) -> None:
    results.row("maml", 1)
    done = run("-s", "study", "--to", "t", "--archive", "a.zip", "--creator", "Somebody")
    assert done.exit_code == 0, done.stderr
    with zipfile.ZipFile("a.zip") as archive:
        assert json.loads(archive.read(".zenodo.json"))["creators"] == [{"name": "Somebody"}]
        assert "study.json" in archive.namelist()


def test_a_bundle_is_published_once_it_verifies(run: Run, data: Path) -> None:
    files = small_bundle(data)
    Path("mine.zip").write_bytes(archive_bytes(files))
    done = run("mine.zip", "--to", "t", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    assert [row["result"] for row in rows(done.stdout)] == ["added", "added"]
    with Path(f"t/{SUITE}.csv").open(newline="") as file:
        assert {row["trust"] for row in csv.DictReader(file)} == {"recomputed"}
    assert run("mine.zip", "-s", "another", "--to", "t").exit_code == 2
    name = f"{SUITE}.json"
    table = json.loads(files[name])
    table["rows"][0]["numbers"]["score"] = 0.99
    forged = {**files, name: json.dumps(table).encode()}
    Path("forged.zip").write_bytes(archive_bytes(forged))
    done = run("forged.zip", "--to", "u")
    assert done.exit_code == 1
    assert "forged.zip isn't published" in done.stderr
    assert not Path("u").exists()


def test_cells_of_a_bundle_are_run_again_before_it_is_published(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One honest seed in a hundred lies outside of the interval.
    monkeypatch.setattr(rerun, "prediction_interval", lambda scores: (0.0, 1.0))
    Path("mine.zip").write_bytes(archive_bytes(small_bundle(data)))
    done = run("mine.zip", "--to", "t", "--rerun", "6", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    assert [row["result"] for row in rows(done.stdout)] == ["added", "added", *["reproduced"] * 2]
    with Path(f"t/{SUITE}.csv").open(newline="") as file:
        assert {row["trust"] for row in csv.DictReader(file)} == {"reproduced"}
    assert run("-s", "study", "--to", "t", "--rerun", "1").exit_code == 2


def test_made_up_predictions_are_not_published_if_they_are_run_again(run: Run, data: Path) -> None:
    forgery = Forgery(small_bundle(data))
    row = forgery.row_of("protonet")
    for seed in range(3):
        forgery.replace(row, seed, episodes=edited(forgery.proof(row, seed).episodes, 60 + seed))
    forged = forgery.renumbered().resealed()
    files = {name: forged.read(name) for name in forged.names()}
    Path("forged.zip").write_bytes(archive_bytes(files))
    done = run("forged.zip", "--to", "t", "--rerun", "6")
    assert done.exit_code == 1
    assert "isn't published: run again" in done.stderr
    assert not Path("t").exists()
    assert run("forged.zip", "--to", "t").exit_code == 0  # which nobody can tell without


def test_which_suite_has_to_be_said(run: Run) -> None:
    done = run("--to", "t")
    assert done.exit_code == 2
    assert "which suite?" in done.stderr


def test_results_that_do_not_verify_are_not_published(run: Run, results: Any) -> None:
    """Their records say 0.999, whatever they predicted."""
    results.row("maml", 1)
    done = run("-s", "study", "--to", "t")
    assert done.exit_code == 1
    assert "nothing is published: t would not verify: " in done.stderr
    assert not Path("t").exists()


@pytest.mark.usefixtures("taken")
def test_a_second_run_of_nothing_that_is_published_is_told(
    run: Run, results: Any, make_results: Callable[[], Any]
) -> None:
    results.row("maml", 1)
    other = make_results()
    other.row("protonet", 1)
    done = run("-s", "study", "--to", "t", "--again", other.store.root)
    assert done.exit_code == 0
    assert "nothing in it is a second run of a cell that stands in suite study" in done.stderr


def test_what_cannot_be_checked_of_a_bundle_is_told_and_has_to_be_taken(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify.verify_files

    def missing() -> None:
        raise CannotCheckError("data set far isn't on this machine")

    def without_data(files: Any, *known: Any) -> Report:
        report = real(files, *known)
        if SUBMISSION in files.names():
            report.check("data", "small: far/5w1s3q", missing)
        return report

    monkeypatch.setattr(verify, "verify_files", without_data)
    Path("mine.zip").write_bytes(archive_bytes(small_bundle(data)))
    done = run("mine.zip", "--to", "t")
    assert done.exit_code == 1
    assert "data, small: far/5w1s3q: not checked: data set far isn't on this" in done.stderr
    assert "not all of it can be checked here" in done.stderr
    assert not Path("t").exists()
    done = run("mine.zip", "--to", "t", "--unchecked")
    assert done.exit_code == 0, done.stderr
    assert "not checked" in done.stderr
    assert run("-s", "study", "--to", "t", "--unchecked").exit_code == 2
