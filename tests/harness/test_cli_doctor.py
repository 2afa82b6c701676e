"""`metabench doctor`: what it finds, and its exit code when something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metabench.cli import main
from metabench.plugins import PluginInfo
from metabench.registry import Registry, make_entry


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))

    def invoke(*args: str) -> Result:
        folders = ["-o", str(tmp_path / "out"), "-d", str(tmp_path / "data")]
        return CliRunner().invoke(main, ["doctor", *folders, *args])

    return invoke


def findings(done: Result) -> dict[str, dict[str, str]]:
    return {row["check"]: row for row in json.loads(done.stdout)}


def test_a_machine_that_runs_these_tests_is_well(run: Any, tmp_path: Path) -> None:
    import torch

    done = run("--json")
    found = findings(done)
    assert done.exit_code == 0
    assert {row["state"] for row in found.values()} <= {"ok", "note"}
    assert found["torch"]["found"].startswith(torch.__version__)
    assert "1 thread" in found["cores"]["found"]
    assert str(tmp_path / "out") in found["result folder"]["found"]
    assert found["data set quickdraw"]["found"] == "ready"
    missing = found["data set omniglot"]
    assert missing["state"] == "note"
    assert "metabench data prepare omniglot" in missing["advice"]
    assert found["plugin builtin"]["state"] == "ok"
    assert not list(tmp_path.iterdir())  # looking makes no folder


def test_results_of_a_newer_version_are_wrong(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "store.json").write_text('{"schema": 99}')
    done = run("--json")
    found = findings(done)["result folder"]
    assert (done.exit_code, found["state"]) == (1, "wrong")
    assert "newer version" in found["found"]
    assert "upgrade metabench" in found["advice"]


def test_folders_that_are_files_are_wrong_and_hide_no_other_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for name in ("METABENCH_OUT", "METABENCH_DATA"):
        monkeypatch.setenv(name, str(file))
    options = ["-o", str(file), "-d", str(file)]
    for words in ([], options):
        done = CliRunner().invoke(main, ["doctor", *words, "--json"])
        found = findings(done)
        assert done.exit_code == 1
        assert found["result folder"]["state"] == found["data folder"]["state"] == "wrong"
        assert found["result folder"]["found"] == f"{file} is not a folder"
        assert "-o/--out or METABENCH_OUT" in found["result folder"]["advice"]
        assert f"{file} is not a folder" in found["data folder"]["found"]
        assert "-d/--data-dir, METABENCH_DATA" in found["data folder"]["advice"]
        assert found["data sets"]["state"] == "note"
        assert found["plugin builtin"]["state"] == "ok"


def test_a_result_folder_without_a_name_is_wrong(run: Any) -> None:
    done = run("-o", "", "--json")
    found = findings(done)["result folder"]
    assert (done.exit_code, found["state"]) == (1, "wrong")
    assert "has no name" in found["found"]


def test_folders_that_cannot_be_written_are_wrong(run: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        done = run("--json")
    finally:
        tmp_path.chmod(0o700)
    found = findings(done)
    assert done.exit_code == 1
    assert found["result folder"]["state"] == found["data folder"]["state"] == "wrong"
    assert "--data-dir" in found["data folder"]["advice"]


def test_a_torchvision_that_does_not_fit_is_wrong(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    done = run("--json")
    found = findings(done)["torchvision"]
    assert (done.exit_code, found["state"]) == (1, "wrong")
    assert "fits this torch" in found["advice"]
    assert findings(done)["torch"]["state"] == "ok"


def test_plugins_and_data_sets_that_break_are_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench import Lazy

    known = Registry()
    facts = {"family": "images", "reference": "-", "summary": "-"}
    known.add(make_entry("dataset", Lazy("gone", "no_such_module:Gone", **facts), "p", "plugin p"))
    known.plugins.append(PluginInfo("p", "dist", "1.0", "failed", "it \x1b[31mraised"))
    monkeypatch.setattr("metabench.plugins.registry", lambda strict=False: known)
    done = run()
    assert done.exit_code == 1
    assert "cannot be imported" in done.stdout
    assert "failed, of dist 1.0: it raised" in done.stdout
    assert "METABENCH_DISABLE_PLUGINS" in done.stdout


def test_a_check_that_breaks_is_a_finding_and_hides_no_other(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: 1 // 0)
    done = run("--json")
    found = findings(done)
    assert done.exit_code == 1
    assert found["machine"]["found"].startswith("ZeroDivisionError")
    assert "plugin builtin" in found
