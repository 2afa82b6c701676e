"""`metabench time`: which cells it times, what it prints, keeps and refuses."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_suite import HEAD

from metabench.cli import main
from metabench.cli.time import COLUMNS, FACTS, KERNELS, _named
from metabench.experiment.prepared import prepare
from metabench.store.store import Store

SUITE = f"""{HEAD}
[[algorithm]]
name = "protonet"
[[algorithm]]
name = "nearest-centroid"
variant = ""
recipe = {{steps = 0}}
"""
PROTONET, CENTROID = (
    f"quickdraw/5w1s3q/{name}/conv4-4/seed0" for name in ("protonet", "nearest-centroid")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with a suite of which protonet's first seed is finished."""
    place = tmp_path_factory.mktemp("time")
    (place / "mine.toml").write_text(SUITE)
    options = {"out": place / "out", "data_dir": data, "device": "cpu"}
    done = prepare(place / "mine.toml", algorithms="protonet", **options).run()
    assert not done.outcome.failures
    return place


@pytest.fixture
def run(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`metabench time` in that folder, in this process instead of a worker."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METABENCH_DATA", str(data))
    monkeypatch.setenv("METABENCH_OUT", "out")

    def here(*args: object, **options: object):
        return prepare(*args, **{**options, "jobs": None})

    monkeypatch.setattr("metabench.experiment.prepared.prepare", here)
    return lambda *words: CliRunner().invoke(main, ["time", "--seconds", "0.05", *words])


def test_finished_cells_are_timed_and_the_others_named(run, folder: Path) -> None:
    store = Store(folder / "out")
    [record] = store.records()
    [machine] = store.timings(record.key)
    before = store.read_timing(record.key, machine)
    result = run("-s", "mine.toml")
    assert result.exit_code == 0, result.output
    head, _, row = result.stdout.splitlines()
    assert head.split() == list(COLUMNS)
    assert row.split()[0] == PROTONET
    told = result.stderr
    assert f"not finished and left out: {CENTROID}" in told
    assert "finish them with: metabench run -s mine.toml" in told
    assert f"machine {machine}: 1 thread" in told
    assert "GFLOP/s in a " in told
    after = store.read_timing(record.key, machine)
    assert after is not None
    assert before is not None
    assert set(after) == set(before)
    assert after["parts"] != before["parts"]
    assert f"{after['adapt_ms']:.4g} [" in row


def test_json_has_all_that_is_kept(run, folder: Path) -> None:
    result = run("-s", "mine.toml", "-a", "protonet", "--json")
    [row] = json.loads(result.stdout)["times"]
    store = Store(folder / "out")
    [record] = store.records()
    [(machine, kept)] = store.timings(record.key).items()
    assert row == {"cell": PROTONET, **kept}
    assert json.loads(result.stdout)["machine"] == machine
    assert "not finished" not in result.stderr


MAPPING = """
[[algorithm]]
name = "task-mapping"
variant = ""
hyperparameters = {tasks = 8, measured_tasks = 16, width = 8}
recipe = {steps = 3, batch_size = 8}
"""


def test_what_learns_from_collected_tasks_has_a_step_of_training_too(
    run, data: Path, tmp_path: Path
) -> None:
    suite, out = tmp_path / "mapping.toml", tmp_path / "out"
    suite.write_text(HEAD + MAPPING)
    done = prepare(suite, out=out, data_dir=data, device="cpu").run()
    assert not done.outcome.failures
    result = run("-s", str(suite), "-o", str(out), "--json")
    [row] = json.loads(result.stdout)["times"]
    assert set(row["parts"]) == {"adapt", "predict", "train_step"}
    assert row["parts"]["train_step"]["flops"] > 0


def test_csv_has_a_column_for_each_figure(run) -> None:
    result = run("-s", "mine.toml", "-a", "protonet", "--format", "csv")
    [row] = csv.DictReader(io.StringIO(result.stdout))
    assert len(row) == 1 + 3 * len(FACTS)
    assert float(row["adapt_low_ms"]) <= float(row["adapt_ms"]) <= float(row["adapt_high_ms"])
    assert int(row["train_step_flops"]) > int(row["adapt_flops"]) > 0


def test_kernels_are_printed_behind_the_times(run) -> None:
    result = run("-s", "mine.toml", "--kernels")
    times, kernels = result.stdout.split("\n\n")
    assert times.split()[: len(COLUMNS)] == list(COLUMNS)
    assert kernels.split()[: len(KERNELS)] == list(KERNELS)
    assert "aten::" in kernels
    for part in ("adapt", "predict", "train_step"):
        assert f" {part} " in kernels
    table = run("-s", "mine.toml", "--kernels", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert set(rows[0]) == set(KERNELS)
    shares = [float(row["share"]) for row in rows if row["part"] == "adapt"]
    assert sum(shares) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["-a", "nearest-centroid"], "no such cell of suite 'mine' is finished in /", "run -s"),
        (["--seed", "5"], "no such cell", "status --explain"),
        (["-o", "elsewhere"], "elsewhere", ""),
        (["-a", "protonett"], "no algorithm 'protonett'", "did you mean 'protonet'?"),
        (["--seeds", "1", "--seed", "0"], "exclude each other", "--seed 0,1,2"),
        (["--seconds", "0"], "--seconds", "time -h"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_two_lines(
    run, words: list[str], message: str, hint: str, folder: Path
) -> None:
    result = run("-s", "mine.toml", *words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("metabench: ")]
    assert message in lines[0]
    assert hint in result.stderr
    assert not (folder / "elsewhere").exists()


def test_many_names_are_cut_short() -> None:
    assert _named(["a", "b"]) == "a, b"
    assert _named(list("abcdefg")) == "a, b, c, d, e and 2 more"


REPLACED = "time.perf_counter was replaced in this process: no time is taken"


def test_once_the_clock_was_replaced_it_says_so_and_the_times_stay(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(folder / "out")
    [record] = store.records()
    before = store.timings(record.key)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    result = run("-s", "mine.toml", "-a", "protonet")
    assert result.exit_code == 1
    assert f"{PROTONET} could not be timed: {REPLACED}" in result.stderr
    assert store.timings(record.key) == before


def test_a_plugin_that_replaced_the_clock_is_noticed_and_nothing_is_kept(
    metabench, third_party: Callable[[str], Path], tmp_path: Path, data: Path
) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    path = (third_party("metabench-patches-clock"),)
    options = ("-s", "mine.toml", "-a", "nearest-centroid", "-q", "-j", "1")
    done = metabench("run", *options, path=path, METABENCH_DATA=str(data))
    assert done.returncode == 0, done.stderr
    assert f"{CENTROID} could not be timed: {REPLACED}" in done.stderr
    store = Store(tmp_path / "metabench-results")
    [record] = store.records()
    assert store.timings(record.key) == {}
