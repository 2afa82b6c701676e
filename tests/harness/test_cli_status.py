"""`metabench status`: counts, failures, what runs now, and why a cell is not reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metabench.cli import main
from metabench.runner.environment import run_info
from metabench.store.record import Failure

SUITE = """
summary = "pixels"
[[dataset]]
name = "quickdraw"
[[protocol]]
ways = 5
shots = 1
queries = 2
episodes = 4
[[backbone]]
name = "identity"
[[algorithm]]
name = "nearest-centroid"
recipe = {steps = 0, validate_every = 0}
"""


def run(out: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["status", "-o", str(out), *args])


def test_cells_are_counted_by_suite(results: Any) -> None:
    results.row("maml")
    results.add("protonet", status="nan")
    results.row("reptile", status="missing")
    results.add("anil", suite="other", status="error")
    told = json.loads(run(results.store.root, "--json").stdout)
    counts = {row["suite"]: list(row.values())[1:] for row in told["suites"]}
    # cells, finished, failed, missing, running
    assert counts == {"study": [7, 3, 1, 3, 0], "other": [1, 0, 1, 0, 0]}
    assert [row["status"] for row in told["failed"]] == ["error", "nan"]
    one = json.loads(run(results.store.root, "--json", "-s", "other").stdout)
    assert [row["suite"] for row in one["suites"]] == ["other"]
    assert len(run(results.store.root, "--format", "csv").stdout.splitlines()) == 3


def test_a_failure_says_what_and_is_one_line_of_text(results: Any) -> None:
    results.add("[red]\x1b[31mx", status="out-of-memory")
    told = run(results.store.root).stdout
    assert "out-of-memory" in told
    assert "ValueError: [red]x broke" in told
    assert "\x1b" not in told


def test_a_failure_without_an_exception_is_its_message(results: Any) -> None:
    key = results.add("maml", status="nan")
    message = "the loss is not finite"
    results.store.fail(results.store.failure(key).identity, Failure(status="nan", message=message))
    [told] = json.loads(run(results.store.root, "--json").stdout)["failed"]
    assert told["error"] == message


def test_what_runs_now_is_told_apart_from_what_was_given_up(results: Any) -> None:
    at_work = results.add("maml", status="missing")
    given_up = results.add("protonet", status="missing")
    with results.store.claim(given_up):
        pass
    with results.store.claim(at_work), results.store.claim("9" * 32):
        told = json.loads(run(results.store.root, "--json").stdout)
    running = {row["key"]: row["cell"] for row in told["running"]}
    assert set(running) == {at_work, "9" * 32}
    assert running[at_work] == "quickdraw/5w1s3q/maml/conv4-32/seed0"
    assert told["suites"][0]["running"] == 1
    assert json.loads(run(results.store.root, "--json").stdout)["running"] == []


def test_an_unknown_suite_or_folder_is_an_error(results: Any, tmp_path: Path) -> None:
    results.row()
    done = run(results.store.root, "-s", "studi")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean 'study'?" in done.stderr
    assert run(tmp_path / "none").exit_code == 2
    assert run(results.store.root, "--explain").exit_code == 2  # a suite of nobody's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite's file, data, and the results of a real run of it."""
    import torch

    from metabench.plugins import registry
    from metabench.runner.matrix import build_matrix
    from metabench.runner.run import RunOptions, run_cells
    from metabench.runner.suite import load_suite

    folder = tmp_path_factory.mktemp("explain")
    file = folder / "pixels.toml"
    file.write_text(SUITE)
    options = RunOptions(folder / "out", folder / "data", torch.device("cpu"))
    cells = build_matrix(load_suite(file), registry())
    run_cells(cells, registry(), options, suite=str(file))
    return folder


def explained(place: Path, suite: str) -> dict[str, list[str]]:
    (place / "pixels.toml").write_text(suite)
    file, data = str(place / "pixels.toml"), str(place / "data")
    options = ["--explain", "-s", file, "-d", data, "--device", "cpu", "--json"]
    done = run(place / "out", *options)
    assert done.exit_code == 0, done.stderr
    return {row["cell"]: [row["state"], row["why"]] for row in json.loads(done.stdout)}


NAME = "quickdraw/5w1s2q/nearest-centroid/identity/seed0"


def test_a_cell_that_is_the_same_is_reused(place: Path) -> None:
    assert explained(place, SUITE) == {NAME: ["reused", ""]}
    assert explained(place, f"# a comment changes nothing\n{SUITE}") == {NAME: ["reused", ""]}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("episodes = 4", "episodes = 6", "protocol.episodes: 4 -> 6"),
        ("{steps = 0,", "{steps = 0, lr = 0.5,", "recipe.lr: 0.001 -> 0.5"),
    ],
)
def test_what_differs_from_the_finished_cell_is_said(
    place: Path, old: str, new: str, why: str
) -> None:
    assert explained(place, SUITE.replace(old, new)) == {NAME: ["runs", why]}


def test_a_cell_that_never_ran_is_compared_with_the_nearest(place: Path) -> None:
    told = explained(place, SUITE.replace("shots = 1", "shots = 2"))
    [(state, why)] = told.values()
    assert state == "runs"
    assert why == "it was never finished; what is nearest: protocol.shots: 1 -> 2"
    told = explained(place, f"seeds = 2\n{SUITE}")
    other = NAME.replace("seed0", "seed1")
    assert told == {NAME: ["reused", ""], other: ["runs", "it was never finished"]}


def test_a_failed_cell_runs_again(place: Path) -> None:
    import torch

    from metabench.plugins import registry
    from metabench.runner.bench import Workbench
    from metabench.runner.matrix import build_matrix
    from metabench.runner.suite import load_suite
    from metabench.store.record import Failure
    from metabench.store.store import Store

    (place / "pixels.toml").write_text(SUITE.replace("ways = 5", "ways = 6"))
    [cell] = build_matrix(load_suite(place / "pixels.toml"), registry())
    bench = Workbench(registry(), place / "data", torch.device("cpu"))
    info = run_info(bench.device, "")
    Store.open(place / "out").fail(bench.identity(cell), Failure(status="killed"), info)
    told = explained(place, SUITE.replace("ways = 5", "ways = 6"))
    assert list(told.values()) == [["runs", "it failed: killed"]]


def test_counting_costs_no_torch(results: Any, metabench: Any) -> None:
    results.row()
    blocked = results.store.root.parent / "blocked"
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ImportError('torch was imported')")
    for verb in (["status"], ["leaderboard", "-s", "study"], ["clean"]):
        done = metabench(*verb, "-o", str(results.store.root), path=(blocked,))
        assert done.returncode == 0, done.stderr
