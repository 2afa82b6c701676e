"""`metabench bench`: which benchmarks are run, what it prints, and what it never tells."""

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metabench.errors import UnknownNameError, UsageError
from metabench.hookspecs import Lazy
from metabench.plugins import registry
from metabench.registry import Registry, make_entry
from metabench.testing.benchmarks import launch
from metabench.testing.benchmarks.asked import Asked
from metabench.testing.benchmarks.subjects import Subject

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
NOT_A_WORKER = {"PYTEST_XDIST_WORKER": ""}
"""These tests may run in a worker of pytest-xdist, in which nothing is timed."""
FAST = ("--", "--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "-m", "not slow")


def known() -> Registry:
    registry = Registry()
    for kind, names in {"algorithm": "one two", "backbone": "net wide", "dataset": "cats"}.items():
        for name in names.split():
            facts = {"family": "f", "reference": "r", "summary": "s"}
            mode = "inductive" if kind == "algorithm" else ""
            registry.add(make_entry(kind, Lazy(name, "a.b:C", inference=mode, **facts), "p", "p"))
    library = Lazy("library", "a.b:C", **facts, argument="network")
    registry.add(make_entry("backbone", library, "p", "p"))
    return registry


def chosen(asked: Asked) -> tuple[list[str], list[str], list[str]]:
    of = known()
    return asked.algorithms_of(of), asked.backbones_of(of), asked.datasets_of(of)


def test_what_is_timed_follows_from_what_is_registered_and_asked_for() -> None:
    assert chosen(Asked()) == (["one", "two"], ["net"], ["cats"])
    assert chosen(Asked(algorithms=("t*",))) == (["two"], ["net"], [])
    assert chosen(Asked(backbones=("wide",))) == (["one", "two"], ["wide"], [])
    assert chosen(Asked(backbones=("library:a",))) == (["one", "two"], ["library:a"], [])
    assert chosen(Asked(datasets=("c*",))) == ([], ["net"], ["cats"])


def test_a_name_that_nothing_has_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wide'"):
        Asked(backbones=("wde",)).check(known())


def test_without_pytest_benchmark_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "NEEDED", ("pytest", "pytest_benchmark_is_not_here"))
    with pytest.raises(UsageError, match=r"pip install 'metabench\[bench\]'"):
        launch.run_benchmarks(Asked())


def test_it_times_a_contributed_algorithm(
    metabench: Cli, third_party: Callable[[str], Path]
) -> None:
    path = third_party("metabench-pixel-centroid")
    args = ("bench", "-a", "pixel-centroid", "--table", "--json", "--device", "cpu", *FAST)
    done = metabench(*args, path=(path,), **NOT_A_WORKER)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["group"] for row in rows} == {"evaluation of 40 episodes"}
    assert all(row["median_ms"] > 0 and row["rounds"] >= 2 for row in rows)
    assert all("pixel-centroid" in row["benchmark"] for row in rows)


def test_its_report_compares_with_a_saved_one_that_names_no_host(
    metabench: Cli, tmp_path: Path
) -> None:
    args = ("bench", "-a", "nearest-centroid", "-b", "identity", "--device", "cpu", *FAST)
    first = metabench(*args, "--benchmark-save=before", **NOT_A_WORKER)
    assert first.returncode == 0, first.stderr
    [saved] = (tmp_path / ".benchmarks").rglob("*.json")
    machine = json.loads(saved.read_text())["machine_info"]
    assert "node" not in machine
    assert f'"{platform.node()}"' not in saved.read_text()
    assert machine["torch"]
    second = metabench(*args, "--benchmark-compare", **NOT_A_WORKER)
    assert second.returncode == 0, second.stderr
    assert "(0001_before)" in second.stdout
    assert "(NOW)" in second.stdout


def test_formats_are_for_its_table(metabench: Cli) -> None:
    done = metabench("bench", "--json")
    assert done.returncode == 2
    assert "add --table" in done.stderr


@pytest.mark.parametrize(
    ("algorithm", "phase"),
    [("protonet", "episodic"), ("baseline", "pretrain"), ("task-mapping", "learn")],
)
def test_a_step_of_its_own_training_is_timed_where_it_has_one(algorithm: str, phase: str) -> None:
    """Of what stands on shared pre-training too: that is timed with the algorithm it is all of."""
    subject = Subject(registry(), algorithm, "mlp", torch.device("cpu"))
    steps = subject.steps()
    assert steps is not None
    assert steps.phase.name == phase
    assert torch.isfinite(steps.at(0)())
