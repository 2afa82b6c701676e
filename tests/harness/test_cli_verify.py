"""`metabench bundle` and `metabench verify`: from a result folder to a file that is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from forging import Forgery
from small_bundle import small_bundle, small_run

from metabench.cli import main
from metabench.publishing.archive import archive_bytes


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, list(map(str, args)))


def states(result: Result) -> set[str]:
    return {row["result"] for row in json.loads(result.stdout)}


def test_a_bundle_of_ones_own_verifies_and_runs_again(run: Any, data: Path, tmp_path: Path) -> None:
    suite = small_run(data).parent / "small.toml"
    made = run(
        "bundle", "-s", suite, "-a", "protonet", "--out", small_run(data), "--to", "mine.zip"
    )
    assert made.exit_code == 0, made.stderr
    assert "check it with: metabench verify mine.zip" in made.stderr
    checked = run("verify", "mine.zip", "--rerun", "2", "--json")
    assert checked.exit_code == 0, checked.stdout + checked.stderr
    assert states(checked) == {"holds"}
    found = [row["check"] for row in json.loads(checked.stdout)]
    assert found.count("run again") == 2
    assert found.count("another seed") == 1
    assert "seed" in checked.stderr  # the progress


def test_what_does_not_hold_is_exit_code_1(run: Any, data: Path, tmp_path: Path) -> None:
    forgery = Forgery(small_bundle(data))
    forgery.change_row(lambda row: row["numbers"].update(score=0.99))
    (tmp_path / "b.zip").write_bytes(archive_bytes(forgery.resealed().content))
    found = run("verify", "b.zip", "--rerun", "1")
    assert found.exit_code == 1
    assert "its score is 0.99" in found.stdout
    assert "nothing is run again" in found.stderr


def test_untrusted_text_is_printed_as_text(run: Any, data: Path, tmp_path: Path) -> None:
    forgery = Forgery(small_bundle(data))
    forgery.change_row(lambda row: row["labels"].update(algorithm="[red]\x1b[2Jx"))
    (tmp_path / "b.zip").write_bytes(archive_bytes(forgery.resealed().content))
    for fmt in ("table", "json", "csv", "markdown"):
        found = run("verify", "b.zip", "--format", fmt)
        assert found.exit_code == 1
        assert "\x1b" not in found.stdout + found.stderr
    assert "[red]" in run("verify", "b.zip").stdout


def test_what_is_no_bundle(run: Any, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK")
    found = run("verify", "b.zip")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "this bundle isn't read: it is no zip file" in found.stderr
    assert run("verify", "missing.zip").exit_code == 2
    assert run("verify", "b.zip", "--rerun", "0").exit_code == 2
    (tmp_path / "empty").mkdir()
    empty = run("verify", "empty")
    assert empty.exit_code == 1
    assert "it has no table" in empty.stdout


def test_a_folder_is_verified_too(run: Any, data: Path) -> None:
    made = run("publish", "-s", "small", "--out", small_run(data), "--to", "tables")
    assert made.exit_code == 0, made.stderr
    found = run("verify", "tables")
    assert found.exit_code == 0, found.stdout
    assert "--rerun can tell" in found.stderr


def test_a_bundle_of_nothing(run: Any, data: Path) -> None:
    found = run("bundle", "-s", "smal", "--out", small_run(data))
    assert found.exit_code == 2
    assert "small" in found.stderr
    assert run("bundle", "--out", small_run(data)).exit_code == 2
