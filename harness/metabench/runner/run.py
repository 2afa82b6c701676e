"""A run: plan, jobs on an executor, failures noted, then the timing stage alone."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from metabench.engine.numerics import process_kept
from metabench.engine.precision import Precision
from metabench.engine.progress import Progress
from metabench.registry import Registry
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.environment import run_info, this_machine, threads_left
from metabench.runner.executors import Executor, InProcess, Workers
from metabench.runner.jobs import Job, JobResult
from metabench.runner.matrix import build_matrix
from metabench.runner.plan import Plan, make_plan, timing_jobs
from metabench.runner.suite import open_suite
from metabench.runner.worker import Place
from metabench.store.record import LOG, Failure
from metabench.store.store import Store
from metabench.store.suites import SuiteCell

log = logging.getLogger("metabench.runner")


class Watch(Protocol):
    """Whoever watches a run; every call comes from the process and thread of the run."""

    def preparing(self, what: str, fraction: float | None) -> None:
        """A data set is downloaded or prepared."""

    def planned(self, plan: Plan) -> None:
        """What will be done."""

    def started(self, job: Job) -> None:
        """A job was handed to a worker."""

    def progress(self, job: Job, progress: Progress) -> None:
        """How far a job is."""

    def ended(self, job: Job, result: JobResult) -> None:
        """A job ended, well or not."""

    def timing(self, jobs: int) -> None:
        """The timing stage begins."""


class Unwatched:
    """Nobody watches."""

    def preparing(self, what: str, fraction: float | None) -> None:
        pass

    def planned(self, plan: Plan) -> None:
        pass

    def started(self, job: Job) -> None:
        pass

    def progress(self, job: Job, progress: Progress) -> None:
        pass

    def ended(self, job: Job, result: JobResult) -> None:
        pass

    def timing(self, jobs: int) -> None:
        pass


@dataclass(frozen=True)
class RunOptions:
    """How a run is done; nothing in here but device, engine and precision changes a digit.

    Attributes:
        results: the result folder.
        data_folder: where data sets are.
        device: such as cpu or cuda:0, resolved.
        jobs: workers; None: everything in this process.
        timeout: seconds a job may take, once its worker is up; with workers only.
        fresh: run finished cells again.
        failed_only: run only cells that failed.
        fail_fast: stop at the first failure.
        strict_plugins: a plugin that does not load is fatal in workers too.
        engine: how inner loops are run, or `auto`.
        precision: in which networks are computed.
        threads: cores of a worker, among which tasks are shared; None: what the workers leave.
        classes: algorithms of the registry that no plugin registers, for workers to import.
        timings: whether rows are timed at the end.
    """

    results: Path
    data_folder: Path
    device: torch.device
    jobs: int | None = None
    timeout: float | None = None
    fresh: bool = False
    failed_only: bool = False
    fail_fast: bool = False
    strict_plugins: bool = False
    engine: str = "auto"
    precision: Precision = "float32"
    threads: int | None = None
    classes: tuple[type, ...] = ()
    timings: bool = True


@dataclass
class RunResult:
    """What a run came to.

    Attributes:
        plan: what was asked for, and what was found finished.
        ran: keys of the cells that this run finished.
        failures: how cells of this run failed, by key.
        stopped: whether `fail_fast` left something undone.
    """

    plan: Plan
    ran: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    stopped: bool = False


@process_kept()
def run_cells(
    cells: Sequence[Cell],
    registry: Registry,
    options: RunOptions,
    *,
    suite: str,
    watch: Watch | None = None,
) -> RunResult:
    """Run a matrix into a result folder, and time its rows.

    A failed cell does not stop the others. Typing Ctrl-C ends the workers, keeps what is finished
    and raises KeyboardInterrupt.

    Args:
        suite: the suite's name or file, as a command line names it.
        watch: is told what happens.

    Raises:
        MetabenchError: something that makes the run impossible, before anything is trained, or
            going on with it (a full disk).
    """
    watch = watch or Unwatched()
    store = Store.open(options.results)
    bench = bench_of(registry, options)
    prepare_data(bench, cells, watch.preparing)
    plan = make_plan(
        bench,
        store,
        cells,
        suite=suite,
        fresh=options.fresh,
        failed_only=options.failed_only,
    )
    _remember(store, plan, _asked(suite, registry))
    watch.planned(plan)
    result = RunResult(plan)
    executor = LazyExecutor(options, bench, store, watch, jobs=len(plan.jobs))
    try:
        _run_jobs(executor, bench, store, options, result, watch)
        if options.timings and not result.stopped:
            _time_rows(executor, bench, store, plan, watch)
    finally:
        executor.close()
    return result


def bench_of(registry: Registry, options: RunOptions) -> Workbench:
    """The workbench that these options ask for."""
    return Workbench(
        registry,
        options.data_folder,
        options.device,
        engine=options.engine,
        precision=options.precision,
        threads=options.threads or threads_left(1),
    )


def _remember(store: Store, plan: Plan, asked: list[str] | None) -> None:
    """Note for the suite's table what this run stands for."""
    for name in {cell.suite for cell in plan.cells}:
        members = [
            SuiteCell(
                key=key, labels=cell_labels(cell), settings=cell.settings_digest, command=command
            )
            for cell, key, command in zip(plan.cells, plan.keys, plan.commands, strict=True)
            if cell.suite == name
        ]
        store.remember_suite(name, members, asked)


def _asked(suite: str, registry: Registry) -> list[str] | None:
    """The settings of all cells that a suite asks for, with no filter and nothing changed."""
    try:
        cells = build_matrix(open_suite(suite, registry), registry)
    except (Exception, SystemExit) as error:  # a plugin, perhaps, that this run leaves out
        log.debug("what suite %s asks for in all can't be told: %s", suite, error)
        return None
    return [cell.settings_digest for cell in cells]


def _run_jobs(
    executor: Executor,
    bench: Workbench,
    store: Store,
    options: RunOptions,
    result: RunResult,
    watch: Watch,
) -> None:
    for job, ended in in_order(result.plan.jobs, executor, watch.started):
        _heard(job, ended)
        watch.ended(job, ended)
        if job.kind == "phase":
            continue
        if ended.failure is None:
            result.ran.append(job.key)
            continue
        _note_failure(bench, store, job, ended.failure)
        result.failures[job.key] = ended.failure
        if options.fail_fast:
            result.stopped = True
            return


def _heard(job: Job, ended: JobResult) -> None:
    """Pass on what a job warned of; what concerns all jobs ends the run."""
    for text in ended.warnings:
        log.warning("%s: %s", job.cell.id, text)
    if ended.stop is not None:
        raise ended.stop


def cell_labels(cell: Cell) -> dict[str, str | int]:
    """What tells a cell apart within its suite, as it stands in the result folder."""
    return {
        "id": cell.id,
        "dataset": cell.dataset.label,
        "protocol": cell.protocol.name,
        "protocol_digest": cell.protocol.digest,
        "metric": cell.protocol.metric,
        "algorithm": cell.algorithm.label,
        "variant": cell.variant,
        "backbone": cell.backbone.label,
        "seed": cell.seed,
    }


def prepare_data(
    bench: Workbench, cells: Sequence[Cell], report: Callable[[str, float | None], None]
) -> None:
    """Download or prepare the data sets of these cells, each once.

    Raises:
        DataMissingError, DataCorruptError: one cannot be had.
    """
    for dataset in {id(d): d for d in map(bench.dataset, cells)}.values():
        if dataset.availability() != "ready":
            dataset.prepare(report)


def in_order(
    jobs: Sequence[Job],
    executor: Executor,
    started: Callable[[Job], None],
    at_once: int | None = None,
) -> Iterator[tuple[Job, JobResult]]:
    """Run jobs as slots and dependencies allow; yields each as it ends.

    A job that needs a phase which failed fails as the phase did, without being run.

    Args:
        at_once: how many run side by side, if not as many as the executor can.
    """
    slots = at_once or executor.slots
    waiting = deque(jobs)
    unfinished = {job.key for job in jobs if job.kind == "phase"}
    broken: dict[str, Failure] = {}
    running = 0
    while waiting or running:
        for _ in range(len(waiting)):
            job = waiting.popleft()
            failed = next((broken[key] for key in job.needs if key in broken), None)
            if failed is not None:
                where = f"shared training, {failed.where}".removesuffix(", ")
                yield job, JobResult(0.0, failed.model_copy(update={"where": where}))
            elif running < slots and not unfinished.intersection(job.needs):
                started(job)
                executor.start(job)
                running += 1
            else:
                waiting.append(job)
        if not running:
            continue
        job, result = executor.wait()
        running -= 1
        if job.kind == "phase":
            unfinished.discard(job.key)
            if result.failure is not None:
                broken[job.key] = result.failure
        yield job, result


class LazyExecutor:
    """The executor of a run, begun with its first job; where all is finished, no process starts.

    Nor do more start than there are `jobs`: the pool starts all its workers at once.
    """

    def __init__(
        self, options: RunOptions, bench: Workbench, store: Store, watch: Watch, *, jobs: int
    ) -> None:
        self.slots = max(1, min(options.jobs or 1, jobs))  # without jobs there may be timings
        self._options, self._bench, self._store, self._watch = options, bench, store, watch
        self._begun: Executor | None = None

    def start(self, job: Job) -> None:
        if self._begun is None:
            self._begun = self._begin()
        self._begun.start(job)

    def wait(self) -> tuple[Job, JobResult]:
        assert self._begun is not None  # a job was started
        return self._begun.wait()

    def close(self) -> None:
        if self._begun is not None:
            self._begun.close()

    def _begin(self) -> Executor:
        options = self._options
        if options.jobs is None:
            return InProcess(self._bench, self._store, self._watch.progress)
        place = Place(
            self._store.root,
            options.data_folder,
            str(options.device),
            self._bench.unread,
            tuple((cls.__module__, cls.__qualname__) for cls in options.classes),
            options.strict_plugins,
            options.engine,
            options.precision,
            options.threads or threads_left(self.slots),
        )
        return Workers(self.slots, place, self._watch.progress, timeout=options.timeout)


def _note_failure(bench: Workbench, store: Store, job: Job, failure: Failure) -> None:
    partial = store.root / "partial"
    logs = [log for key in (job.key, *job.needs) for log in (partial / key).glob(f"*/{LOG}")]
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    info = run_info(bench.device, job.command)
    store.fail(bench.identity(job.cell), failure, info, newest)


def _time_rows(
    executor: Executor, bench: Workbench, store: Store, plan: Plan, watch: Watch
) -> None:
    """The second stage, beside nothing else."""
    jobs = timing_jobs(plan, store, this_machine(bench.device))
    for job, failure in run_timings(executor, jobs, watch):
        log.warning("%s could not be timed: %s", job.cell.id, failure.message)


def run_timings(
    executor: Executor, jobs: Sequence[Job], watch: Watch
) -> Iterator[tuple[Job, Failure]]:
    """Run timings one at a time, and nothing beside them; yields those that failed, and how."""
    if jobs:
        watch.timing(len(jobs))
    for job, ended in in_order(jobs, executor, watch.started, at_once=1):
        _heard(job, ended)
        watch.ended(job, ended)
        if ended.failure is not None:
            yield job, ended.failure
