"""`metabench leaderboard`: what it prints, and where."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metabench.cli import main
from metabench.leaderboard.rows import COLUMNS
from metabench.leaderboard.table import write_leaderboard


@pytest.fixture
def run(results: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_OUT", str(results.store.root))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, ["leaderboard", *args])

    return invoke


def test_each_format_has_the_same_rows(run: Any, results: Any) -> None:
    results.row("maml", skill=0.4)
    results.row("protonet", skill=0.9)
    results.add("broken", status="nan")
    as_json = json.loads(run("-s", "study", "--json").stdout)
    assert [list(row) for row in as_json] == [COLUMNS] * 3
    as_csv = run("--suite", "study", "--format", "csv").stdout
    written, page = write_leaderboard(results.store, "study")
    assert as_csv == written.read_text(encoding="utf-8")
    assert run("-s", "study", "--format", "markdown").stdout == page.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert [row["algorithm"] for row in rows] == ["protonet", "maml", "broken"]
    assert [row["score"] for row in rows] == [
        "" if row["score"] is None else f"{row['score']:.4f}" for row in as_json
    ]


def test_the_table_has_a_section_for_what_may_be_compared(run: Any, results: Any) -> None:
    results.row("maml")
    results.row("batch", inference="transductive")
    results.row("protonet", seeds=1, dataset="omniglot")
    lines = run("-s", "study").stdout.splitlines()
    titles = [line for line in lines if "5w1s3q" in line]
    assert titles == [
        "omniglot, 5w1s3q, inductive",
        "quickdraw, 5w1s3q, inductive",
        "quickdraw, 5w1s3q, transductive",
    ]
    assert lines.count("1 or 2 seeds: these checkpoints only, nobody is ranked.") == 1
    assert not {"protocol_digest", "seed_std"} & set(lines[4].split())


def test_a_suite_may_be_named_by_its_file(run: Any, results: Any) -> None:
    results.row("maml")
    by_name = run("-s", "study", "--json")
    by_path = run("-s", "some/where/study.toml", "--json")
    assert (by_path.exit_code, by_path.stdout) == (0, by_name.stdout)
    unknown = run("-s", "some/where/studdy.toml")
    assert unknown.exit_code == 2
    assert "'study'" in unknown.stderr


def test_markup_and_escapes_in_names_are_shown_as_text(run: Any, results: Any) -> None:
    results.row("[red]x[/red]", dataset="a\x1b[2Jb")
    told = run("-s", "study").stdout
    assert "[red]x[/red]" in told
    assert "ab, 5w1s3q" in told
    assert "\x1b" not in told


def test_warnings_go_to_standard_error(run: Any, results: Any) -> None:
    keys = results.row("maml")
    (results.store.folder(keys[0]) / "episodes.parquet").write_bytes(b"")
    done = run("-s", "study", "--json")
    assert json.loads(done.stdout)[0]["status"] == "missing"
    assert "is corrupted" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-s", "studi"], "did you mean 'study'?"),
        (["-s", "study", "-o", "nowhere"], "there are no results in"),
        ([], "Missing option '-s'"),
    ],
)
def test_what_is_not_there_is_told_in_two_lines(
    run: Any, results: Any, args: list[str], told: str
) -> None:
    results.row()
    done = run(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_diagram_into_no_folder_is_told(run: Any, results: Any, tmp_path: Path) -> None:
    results.row("maml")
    done = run("-s", "study", "--diagram", str(tmp_path / "nodir" / "ranks.svg"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no folder" in done.stderr
