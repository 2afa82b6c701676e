"""`metabench.run`, as a notebook uses it."""

from __future__ import annotations

import inspect
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import metabench
from metabench.engine import apart
from metabench.errors import PluginError, UnknownNameError, UsageError
from metabench.experiment.prepared import prepare
from metabench.plugins import registry

CLASS = """
import torch
import torch.nn.functional as F
from metabench import Algorithm, Field, Hyperparameters, Recipe


class Settings(Hyperparameters):
    power: float = Field(2.0, gt=0, description="exponent of the distance")


class MyAlgorithm(Algorithm):
    name = "mine"
    family = "metric"
    reference = "none"
    summary = "Class means on a learnt scale of each pixel."
    inference = "inductive"
    hyperparameters = Settings
    recipe = Recipe(steps=5)

    def build(self):
        self.scale = torch.nn.Parameter(torch.ones(self.problem.item.shape))

    def adapt(self, support, ctx):
        pixels = (support.items.data * self.scale).flatten(2)
        member = F.one_hot(support.targets.values, support.ways).float()
        return torch.einsum("bsn,bsd->bnd", member, pixels) / member.sum(1).unsqueeze(-1)

    def predict(self, state, queries, ctx):
        pixels = (queries.data * self.scale).flatten(2)
        return -torch.cdist(pixels, state) ** self.hp.power
"""
COLUMNS = [
    *("suite", "dataset", "protocol", "algorithm", "variant", "backbone", "seed", "inference"),
    *("metric", "score", "validation_score", "episodes", "status", "selected_step", "budget"),
    *("train_items", "parameters", "train_s", "test_s", "key"),
]
SMALL = ["*.recipe.steps=4", "*.recipe.validate_every=2", "protocol.episodes=10"]


@pytest.fixture(autouse=True)
def notebook(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_DATA", str(data))
    monkeypatch.delenv("METABENCH_OUT", raising=False)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> type[metabench.Algorithm]:
    """A class that stands in no file, as one that was typed into a notebook."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(CLASS, main.__dict__)
    cls: type[metabench.Algorithm] = main.MyAlgorithm
    return cls


def run(*algorithms, suite: str = "smoke", **options) -> metabench.experiment.Experiment:
    return metabench.run(suite, algorithms=list(algorithms), seeds=1, settings=SMALL, **options)


def test_a_class_of_the_notebook_runs_beside_those_of_plugins(typed) -> None:
    experiment = run("protonet", typed)
    frame = experiment.to_frame()
    assert list(frame.columns) == COLUMNS
    assert list(frame["algorithm"]) == ["protonet", "mine"]
    assert list(frame["status"]) == ["ok", "ok"]
    assert list(frame["backbone"]) == ["conv4-8"] * 2
    assert list(frame["budget"]) == [4, 4]
    assert (frame["seed"].dtype, frame["score"].dtype) == (np.int64, np.float64)
    assert frame["score"].between(0, 1).all()
    assert frame["train_s"].gt(0).all()
    assert frame["key"].is_unique
    assert Path("metabench-results", "cells").is_dir()
    assert repr(experiment) == (
        f"<Experiment smoke: 2 cells, 2 finished; results in {Path.cwd() / 'metabench-results'}>"
    )

    episodes = experiment.to_frame(episodes=True)
    assert len(episodes) == 2 * 10
    assert list(episodes["episode"]) == [*range(10), *range(10)]
    means = episodes.groupby("key")["score"].mean()
    assert means.to_dict() == pytest.approx(frame.set_index("key")["score"].to_dict())

    table = experiment.leaderboard()
    assert set(table["algorithm"]) == {"protonet", "mine"}
    html = experiment._repr_html_()
    assert "<table" in html
    assert "&lt;Experiment smoke" in html


def test_what_an_algorithm_measures_of_itself_stands_in_columns_of_its_own(typed) -> None:
    def measured(batch, ctx):
        tasks = len(batch.support.targets.values)
        return {"ways": torch.full((tasks,), float(batch.support.ways)), "half": torch.ones(2) / 2}

    class Measuring(typed):
        name = "measuring"

        def phases(self, recipe):
            few = metabench.Recipe(steps=1, meta_batch=2)
            return [*super().phases(recipe), metabench.Measure(measured, few)]

    experiment = run(Measuring, typed)
    frame = experiment.to_frame()
    assert list(frame.columns) == [*COLUMNS, "figure:half", "figure:ways"]
    assert frame["figure:ways"].dtype == np.float64
    assert frame["figure:ways"].iloc[0] == 5.0
    assert list(frame["figure:half"].isna()) == [False, True]
    episodes = experiment.to_frame(episodes=True)
    assert list(episodes.columns[-3:]) == ["key", "figure:half", "figure:ways"]
    assert not [name for name in experiment.leaderboard().columns if name.startswith("figure")]


def test_another_precision_is_another_cell_and_another_row() -> None:
    usual = run("protonet", "baseline")
    coarse = run("protonet", "baseline", precision="bf16")
    assert not set(usual.to_frame()["key"]) & set(coarse.to_frame()["key"])
    assert len(coarse.outcome.ran) == 2
    store = coarse.store
    found = {key: store.find(key) for key in coarse.to_frame()["key"]}
    assert {record.identity.numerics.dtype for record in found.values()} == {"bf16"}
    usual_phase, coarse_phase = (
        {phase for key in e.to_frame()["key"] for phase in store.find(key).phases}
        for e in (usual, coarse)
    )
    assert usual_phase
    assert not usual_phase & coarse_phase  # nor is its shared training the same
    [kept] = store.timings(next(iter(found))).values()
    assert kept["conditions"]["precision"] == "bf16"
    assert [
        run("protonet", "baseline").outcome.ran,
        run("protonet", precision="bf16").outcome.ran,
    ] == [
        [],
        [],
    ]


def test_threads_share_tasks_and_change_no_digit(monkeypatch) -> None:
    seen = []
    usual = apart._pool
    monkeypatch.setattr(apart, "_pool", lambda threads: seen.append(threads) or usual(threads))
    asked = {"suite": "smoke", "algorithms": "maml", "settings": SMALL, "seeds": 1}
    one = metabench.run(**asked, threads=1, out="one").to_frame()
    assert not seen
    two = metabench.run(**asked, threads=2, out="two").to_frame()
    assert set(seen) == {2}
    assert list(one["key"]) == list(two["key"])
    assert list(one["score"]) == list(two["score"])


def test_cores_are_shared_out_unless_workers_are_counted() -> None:
    asked = {"algorithms": "maml", "seeds": 1}
    assert prepare("smoke", jobs=1, **asked).options.threads == 1
    assert prepare("smoke", jobs=1, threads=3, **asked).options.threads == 3
    assert prepare("smoke", jobs="auto", **asked).options.threads is None
    with pytest.raises(UsageError, match="threads = 0 is no number of cores"):
        prepare("smoke", threads=0, **asked)


def test_a_registered_algorithm_that_the_suite_lacks_is_added_as_it_is_by_default(caplog) -> None:
    asked = prepare("fewshot", algorithms=["gnn", "proto*"], seeds=1)
    added = {cell.algorithm.name: cell for cell in asked.cells if cell.protocol.shots == 1}
    assert added.keys() == {"gnn", "proto-maml", "protonet"}
    assert added["gnn"].variant == ""
    assert added["gnn"].protocol == added["protonet"].protocol
    assert added["gnn"].recipe.steps == registry().get("algorithm", "gnn").load().recipe.steps
    assert [record.message for record in caplog.records] == [
        "suite fewshot does not name gnn: it comes as its plugin has it by default, on conv4-32"
    ]
    with pytest.raises(UsageError, match="'gn'"):
        prepare("fewshot", algorithms="gn")


def test_seeds_of_two_precisions_are_no_row(caplog) -> None:
    settings = [*SMALL, "protocol.queries=2"]
    asked = {"suite": "smoke", "algorithms": "protonet", "settings": settings}
    metabench.run(**asked, seeds=[0])
    both = metabench.run(**asked, seeds=[1], precision="bf16")
    assert list(both.leaderboard()["seeds"]) == [1, 1]
    # Which of the two stands first hangs on their keys.
    assert re.search("numerics.dtype: '(float32' -> 'bf16|bf16' -> 'float32)'", caplog.text)


def test_what_has_no_source_is_never_reused_and_what_has_is(typed) -> None:
    first = run("protonet", typed)
    again = run("protonet", typed)
    assert [cell.algorithm.name for cell in again.outcome.plan.finished] == ["protonet"]
    assert len(again.outcome.ran) == 1
    before, after = first.to_frame(), again.to_frame()
    assert list(before["key"] == after["key"]) == [True, False]
    assert list(before["score"]) == list(after["score"])
    assert list(again.leaderboard()["seeds"]) == [1, 1]


def test_settings_reach_a_class_of_the_notebook(typed) -> None:
    changed = metabench.run(
        "smoke", algorithms=typed, settings=[*SMALL, "mine.power=1.5"], out="other"
    )
    [row] = changed.to_frame().to_dict("records")
    assert row["variant"].startswith("power=1.5")
    assert repr(changed).startswith("<Experiment smoke: 1 cell, 1 finished; results in ")


def test_a_failing_class_is_a_row(typed, monkeypatch) -> None:
    def broken(self, state, queries, ctx):
        raise ValueError("broken")

    monkeypatch.setattr(typed, "predict", broken)
    experiment = run(typed, "protonet", fail_fast=True)
    frame = experiment.to_frame()
    assert dict(zip(frame["algorithm"], frame["status"], strict=True)) == {
        "protonet": "ok",
        "mine": "error",
    }
    assert frame.set_index("algorithm")["score"].isna().to_dict() == {
        "protonet": False,
        "mine": True,
    }
    assert len(experiment.to_frame(episodes=True)) == 10
    assert "1 failed" in repr(experiment)


def test_what_fail_fast_left_out_is_missing(typed, monkeypatch) -> None:
    monkeypatch.setattr(typed, "adapt", lambda self, support, ctx: 1 / 0)
    experiment = metabench.run("smoke", algorithms=typed, seeds=2, settings=SMALL, fail_fast=True)
    assert list(experiment.to_frame()["status"]) == ["error", "missing"]


def test_a_taken_name_is_refused(typed) -> None:
    typed.name = "maml"
    with pytest.raises(PluginError, match="'maml' is taken"):
        run(typed)
    assert not Path("metabench-results").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"suite": "smokey"}, UnknownNameError, "did you mean 'smoke'"),
        ({"suite": "smoke", "algorithms": "protonot"}, UsageError, "did you mean 'protonet'"),
        ({"suite": "smoke", "timeout": 3}, UsageError, "a timeout needs workers"),
        ({"suite": "smoke", "fresh": True, "failed": True}, UsageError, "exclude each other"),
        ({"suite": "smoke", "device": "tpu"}, UsageError, "auto, cpu, cuda"),
        ({"suite": "smoke", "seeds": 0}, UsageError, "0 seeds"),
        ({"suite": "smoke", "seeds": True}, UsageError, "seeds = True is neither"),
        ({"suite": "smoke", "seeds": "012"}, UsageError, "seeds = '012' is neither"),
        ({"suite": "smoke", "seeds": [0, True]}, UsageError, "is neither"),
        ({"suite": "smoke", "seeds": [0, 1.0]}, UsageError, "is neither"),
        ({"suite": "smoke", "seeds": 1.5}, UsageError, "seeds = 1.5 is neither"),
        ({"suite": "smoke", "seeds": [2**63]}, UsageError, r"below 2\*\*63"),
        ({"suite": "smoke", "jobs": 0}, UsageError, "jobs = 0 is no number of workers"),
        ({"suite": "smoke", "jobs": -1}, UsageError, "jobs = -1"),
        ({"suite": "smoke", "jobs": True}, UsageError, "jobs = True"),
        ({"suite": "smoke", "jobs": 1.0}, UsageError, "jobs = 1.0"),
        ({"suite": "smoke", "jobs": "all"}, UsageError, "jobs = 'all'"),
        ({"suite": "smoke", "jobs": 1, "timeout": 0}, UsageError, "a timeout of 0 is no time"),
        ({"suite": "smoke", "jobs": 1, "timeout": np.nan}, UsageError, "a timeout of nan"),
        ({"suite": "smoke", "jobs": 1, "timeout": np.inf}, UsageError, "a timeout of inf"),
        ({"suite": "smoke", "jobs": 1, "timeout": True}, UsageError, "a timeout of True"),
        ({"suite": "smoke", "jobs": 1, "timeout": "9"}, UsageError, "a timeout of '9'"),
        ({"suite": "smoke", "out": ""}, UsageError, "the result folder has no name"),
        ({"suite": "smoke", "algorithms": [int]}, UsageError, "subclass metabench.Algorithm"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        metabench.run(**options)
    assert not list(Path().iterdir())


def test_seeds_may_be_those_of_numpy() -> None:
    for seeds in (np.int64(2), np.arange(2), range(2), (0, 1)):
        cells = prepare("smoke", algorithms="protonet", seeds=seeds).cells
        assert [cell.seed for cell in cells] == [0, 1]
        assert {type(cell.seed) for cell in cells} == {int}


def test_run_shows_what_may_be_asked_for() -> None:
    """To `help()` and completion: each parameter of the one signature, and what it means."""
    own, asked = inspect.signature(metabench.run), inspect.signature(prepare)
    assert own.parameters == asked.parameters
    assert own.return_annotation == "Experiment"
    assert own.parameters["device"].default == "auto"
    text = inspect.getdoc(metabench.run)
    assert text is not None
    described = text[text.index("Args:") : text.index("Raises:")]
    assert [name for name in own.parameters if name not in described] == []
    with pytest.raises(TypeError, match="unexpected keyword argument 'algorithm'"):
        metabench.run("smoke", algorithm="maml")


def test_workers_are_refused_a_class_that_only_this_process_has(typed) -> None:
    with pytest.raises(UsageError, match="the class MyAlgorithm: it was defined in a notebook"):
        run(typed, jobs=1)

    class Local(metabench.Algorithm):
        name = "local"
        family = "metric"
        reference = "none"
        summary = "Inside a function."

        def adapt(self, support, ctx):
            return support.items.data

        def predict(self, state, queries, ctx):
            return queries.data

    with pytest.raises(UsageError, match="inside a function"):
        run(Local, jobs=1)


def test_the_result_folder_is_an_argument_or_the_environment(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METABENCH_OUT", "from-environment")
    assert run("protonet").results == tmp_path / "from-environment"
    assert run("protonet", out=tmp_path / "given").results == tmp_path / "given"


SCRIPT = """
import metabench
{definition}
if __name__ == "__main__":
    frame = metabench.run("smoke", algorithms=[MyAlgorithm], seeds=2, settings={settings},
                          jobs=2, out="out").to_frame()
    print(*frame["status"])
"""


@pytest.mark.slow
def test_a_script_can_send_its_own_class_to_workers(metabench, tmp_path: Path, data: Path) -> None:
    import subprocess

    script = tmp_path / "study.py"
    script.write_text(SCRIPT.format(definition=CLASS, settings=SMALL))
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.returncode) == ("ok ok\n", 0), done.stderr
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2  # the second time: reused
