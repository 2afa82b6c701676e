"""The run: which jobs are started when, what is noted, what ends everything."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.errors import StoreError
from metabench.experiment.prepared import prepare
from metabench.leaderboard.table import write_leaderboard
from metabench.runner import run as run_module
from metabench.runner.cells import Cell
from metabench.runner.jobs import Job, JobResult
from metabench.runner.run import Unwatched, in_order, run_cells
from metabench.store.record import Failure
from metabench.store.store import Store

FAILED = Failure(status="killed", message="gone")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    folder = tmp_path_factory.mktemp("any")
    return prepare("smoke", algorithms="protonet", out=folder, data_dir=folder).cells[0]


class Fake:
    """An executor that ends its jobs in a drawn order, some of them badly."""

    def __init__(self, slots: int, broken: set[str], pick: list[int]) -> None:
        self.slots, self.broken, self.pick = slots, broken, pick
        self.running: list[Job] = []
        self.log: list[tuple[str, str]] = []

    def start(self, job: Job) -> None:
        assert len(self.running) < self.slots
        self.running.append(job)
        self.log.append(("start", job.key))

    def wait(self) -> tuple[Job, JobResult]:
        place = self.pick.pop() % len(self.running) if self.pick else 0
        job = self.running.pop(place)
        self.log.append(("end", job.key))
        return job, JobResult(1.0, FAILED if job.key in self.broken else None)

    def close(self) -> None:
        raise AssertionError("the run's own business")


@given(
    needs=st.lists(st.sampled_from(["", "p0", "p1", "p2"]), max_size=8),
    phases=st.sets(st.sampled_from(["p0", "p1", "p2"])),
    broken=st.sets(st.sampled_from(["p0", "p1", "p2", "c0", "c1", "c2"])),
    slots=st.integers(1, 4),
    pick=st.lists(st.integers(0, 3), max_size=20),
)
def test_each_job_ends_once_after_what_it_needs(needs, phases, broken, slots, pick, cell) -> None:
    jobs = [Job("phase", cell, name) for name in sorted(phases)]
    jobs += [Job("cell", cell, f"c{i}", (n,) if n else ()) for i, n in enumerate(needs)]
    fake, started = Fake(slots, broken, pick), []
    ended = list(in_order(jobs, fake, lambda job: started.append(job.key)))
    assert Counter(job.key for job, _ in ended) == Counter(job.key for job in jobs)
    assert started == [key for what, key in fake.log if what == "start"]
    for job, result in ended:
        lost = [name for name in job.needs if name in phases & broken]
        assert (result.failure is not None) == bool(lost or job.key in broken)
        assert (job.key in started) != bool(lost)
        for name in job.needs:
            if name in phases and job.key in started:
                assert fake.log.index(("end", name)) < fake.log.index(("start", job.key))


def test_one_at_once_whatever_the_executor_can_do(cell: Cell) -> None:
    jobs = [Job("timing", cell, f"c{i}") for i in range(4)]
    fake = Fake(3, set(), [])
    list(in_order(jobs, fake, lambda job: None, at_once=1))
    assert fake.log == [(what, job.key) for job in jobs for what in ("start", "end")]


class Watching(Unwatched):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def planned(self, plan) -> None:
        self.told.append(f"planned {len(plan.jobs)}")

    def ended(self, job: Job, result: JobResult) -> None:
        self.told.append(f"{job.kind} {job.cell.algorithm.name}")

    def timing(self, jobs: int) -> None:
        self.told.append(f"timing {jobs}")


def test_a_row_is_timed_once_whatever_the_number_of_seeds(ask, classes) -> None:
    first, second = Watching(), Watching()
    experiment = ask(classes["prototypes"], seeds=2).run(first)
    assert first.told == ["planned 2", *["cell prototypes"] * 2, "timing 1", "timing prototypes"]
    ask(classes["prototypes"], seeds=3).run(second)
    assert second.told == ["planned 1", "cell prototypes"]
    plan = experiment.outcome.plan
    assert [len(experiment.store.timings(key)) for key in plan.keys] == [1, 0]


def test_there_are_no_more_workers_than_jobs(ask, classes, monkeypatch) -> None:
    begun: list[int] = []

    class Counted(Fake):
        def close(self) -> None:
            pass

    def workers(jobs: int, *args: object, **options: object) -> Fake:
        begun.append(jobs)
        return Counted(jobs, set(), [])

    monkeypatch.setattr(run_module, "Workers", workers)
    monkeypatch.setattr("metabench.experiment.prepared._check_importable", lambda cls: None)
    ask(classes["prototypes"], seeds=1, jobs=12).run()
    ask(classes["prototypes"], seeds=3, jobs=2).run()
    assert begun == [1, 2]


def test_a_failed_cell_is_noted_and_the_others_run(ask, classes) -> None:
    both = ask(classes["raising"], classes["prototypes"]).run()
    raised, fine = both.outcome.plan.keys
    assert both.outcome.ran == [fine]
    assert list(both.outcome.failures) == [raised]
    noted = both.store.failure(raised)
    assert noted is not None
    assert noted.failure.where == "episodic 5/12"
    assert (noted.failure.exception, noted.failure.message) == ("ValueError", "bad luck")
    assert "training_loss" in noted.failure.traceback
    assert "bad luck" in (both.store.failure_folder(raised) / "log.txt").read_text()
    assert noted.run.command.startswith("metabench.run(")


def test_a_shared_training_that_fails_fails_its_cells(ask, monkeypatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr("metabench.engine.trial.train_shared_phase", broken)
    tables = [
        f'name = "{name}"\nrecipe = "supervised"' for name in ("baseline", "nearest-centroid")
    ]
    experiment = ask(*tables, 'name = "protonet"').run()
    assert list(experiment.to_frame()["status"]) == ["out-of-memory", "out-of-memory", "ok"]
    for key in experiment.outcome.failures:
        noted = experiment.store.failure(key)
        assert noted is not None
        assert noted.failure.where == "shared training, start"
        assert "too large" in (experiment.store.failure_folder(key) / "log.txt").read_text()


def test_fail_fast_leaves_the_rest_undone(ask, classes) -> None:
    watch = Watching()
    stopped = ask(classes["raising"], classes["prototypes"], fail_fast=True).run(watch)
    assert stopped.outcome.stopped
    assert watch.told == ["planned 2", "cell raising"]
    assert stopped.outcome.ran == []


def test_failed_runs_what_failed_and_nothing_else(ask, classes) -> None:
    ask(classes["raising"]).run()
    watch = Watching()
    again = ask(classes["raising"], classes["prototypes"], failed=True).run(watch)
    assert watch.told == ["planned 1", "cell raising"]
    assert [cell.algorithm.name for cell in again.outcome.plan.left_out] == ["prototypes"]


def test_what_a_job_warned_of_is_passed_on(ask, classes, caplog) -> None:
    with caplog.at_level(logging.WARNING, "metabench"):
        experiment = ask(classes["peeking"]).run()
    [warning] = [r.getMessage() for r in caplog.records if "transductive" in r.getMessage()]
    assert warning.startswith("quickdraw/5w1s3q/peeking/conv4-4/seed0: declared inductive")
    [key] = experiment.outcome.plan.keys
    record = experiment.store.find(key)
    assert record is not None
    assert record.inference == "transductive"


def test_a_result_folder_that_cannot_be_used_ends_the_run(ask, classes, monkeypatch) -> None:
    asked = ask(classes["prototypes"], classes["raising"])

    def full(self: Store, *args: object, **options: object) -> None:
        raise StoreError("the disk of x is full", "free some space")

    monkeypatch.setattr(Store, "publish", full)
    watch = Watching()
    with pytest.raises(StoreError, match="is full"):
        asked.run(watch)
    assert watch.told == ["planned 2"]
    assert not list(Store(asked.options.results).failures())


def test_a_suite_remembers_all_cells_of_a_run_before_they_run(ask, classes, monkeypatch) -> None:
    asked = ask(classes["prototypes"], seeds=2)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_run_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells(asked.cells, asked.registry, asked.options, suite="small.toml")
    noted = Store(asked.options.results).suite("small")
    assert [cell.labels["seed"] for cell in noted] == [0, 1]
    assert {cell.labels["id"] for cell in noted} == {cell.id for cell in asked.cells}


CENTROID = 'name = "nearest-centroid"\nvariant = "{}"\nrecipe = {{steps = 0}}\n'


def test_a_renamed_entry_of_a_suite_leaves_its_table(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def variants(*entries: str, **options: object) -> set[str]:
        done = ask(*map(CENTROID.format, entries), **options).run()
        return {row["variant"] for row in done.leaderboard().to_dict("records")}

    assert variants("old", "kept") == {"old", "kept"}
    assert variants("old", "kept", exclude="kept", settings="protocol.queries=2") == {"old", "kept"}
    assert caplog.messages == []
    assert variants("new", "kept", exclude="kept") == {"new", "kept"}
    [warning] = caplog.messages
    assert "suite small does not ask for what it did" in warning
    assert "2 cells of then left its table" in warning  # one of them by --set
    assert variants("old", "kept") == {"old", "kept"}  # reused


def test_a_cell_that_another_suite_ran_is_run_again_by_this_one(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask(CENTROID.format("x")).run()
    (tmp_path / "small.toml").rename(tmp_path / "mine.toml")
    options = {"out": tmp_path / "out", "device": "cpu"}
    done = prepare("mine.toml", data_dir=ask().options.data_folder, **options).run()
    assert done.outcome.ran == []
    [noted] = done.store.suite("mine")
    assert noted.command.startswith("metabench run --suite mine.toml ")
    _, page = write_leaderboard(done.store, "mine")
    assert "metabench run --suite mine.toml " in page.read_text()
    assert "small.toml" not in page.read_text()


def test_nothing_to_do_starts_no_executor(ask, classes, monkeypatch, tmp_path: Path) -> None:
    ask(classes["prototypes"]).run()

    def never(*args: object) -> None:
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(run_module, "InProcess", never)
    monkeypatch.setattr(run_module, "Workers", never)
    again = ask(classes["prototypes"]).run()
    assert len(again.outcome.plan.finished) == 1
