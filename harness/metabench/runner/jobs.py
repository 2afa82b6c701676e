"""Jobs: what a worker is asked to do, how it does it, and what it answers. All plain data."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from metabench.clock.measure import measure
from metabench.engine.numerics import set_up_process
from metabench.engine.progress import Monitor, Progress
from metabench.errors import NotANumberError
from metabench.registry import Registry
from metabench.runner.bench import Workbench
from metabench.runner.cell import CellRun
from metabench.runner.cells import Cell
from metabench.runner.environment import this_machine
from metabench.store.record import CHECKPOINT, LOG, Failure
from metabench.store.store import Store
from metabench.store.tensors import read_tensors

log = logging.getLogger("metabench.runner")

JobKind = Literal["phase", "cell", "timing"]


@dataclass(frozen=True)
class Job:
    """Something to be done by one worker.

    Attributes:
        kind: train a shared phase, run a cell, or time a finished one.
        cell: the cell; for a phase, one of those that ask for it.
        key: of the phase or the cell in the result folder.
        needs: keys of phases that have to be finished before.
        command: the line that runs the cell again.
    """

    kind: JobKind
    cell: Cell
    key: str
    needs: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Place:
    """Where a process works: folders and device."""

    results: Path
    data_folder: Path
    device: str


@dataclass(frozen=True)
class JobResult:
    """How a job ended: `failure` is None where it succeeded."""

    seconds: float
    failure: Failure | None = None


def run_job(job: Job, bench: Workbench, store: Store, monitor: Monitor) -> JobResult:
    """Do a job in this process; whatever goes wrong in it becomes a `Failure`."""
    started = time.perf_counter()
    last = Progress("start", 0, 0)

    def watch(progress: Progress) -> None:
        nonlocal last
        last = progress
        monitor(progress)

    set_up_process(bench.device)
    try:
        if job.kind == "timing":
            _time(job, bench, store)
        else:
            _run(job, bench, store, watch)
    except Exception as error:
        where = f"{last.phase} {last.step}/{last.total}" if last.total else last.phase
        failure = failure_of(error, where)
        return JobResult(time.perf_counter() - started, failure)
    return JobResult(time.perf_counter() - started)


def _run(job: Job, bench: Workbench, store: Store, monitor: Monitor) -> None:
    with store.claim(job.key) as partial:
        log_file = partial.folder / LOG
        run = CellRun(bench, store, job.cell, job.command, monitor)
        try:
            with _logged_to(log_file):
                log.info("%s %s", job.kind, job.cell.id)
                if job.kind == "phase":
                    run.run_shared_phase(partial)
                else:
                    run.run(partial, log_file)
        except Exception:
            with log_file.open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
            raise
        partial.discard()


def _time(job: Job, bench: Workbench, store: Store) -> None:
    algorithm = bench.build(job.cell)
    tensors, _ = read_tensors(store.folder(job.key) / CHECKPOINT)
    algorithm.load_state_dict(tensors)
    bank = bench.banks(job.cell)["test"]
    times = measure(algorithm, bench.source(bank, job.cell), bench.store_of(bank, job.cell))
    store.write_timing(job.key, this_machine(bench.device), vars(times))


def failure_of(error: BaseException, where: str) -> Failure:
    """How a cell failed, by its exception."""
    text = str(error)
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    # PyTorch's CPU allocator raises a plain RuntimeError.
    memory = memory or (isinstance(error, RuntimeError) and "allocate memory" in text)
    status: Literal["nan", "out-of-memory", "error"] = "out-of-memory" if memory else "error"
    if isinstance(error, NotANumberError):
        status = "nan"
    return Failure(
        status=status,
        exception=type(error).__name__,
        message=text,
        traceback="".join(traceback.format_exception(error)),
        where=where,
    )


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Send this process's log and warnings to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("metabench", "py.warnings")]
    logging.captureWarnings(True)
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        logging.captureWarnings(False)
        handler.close()


MakeBench = Callable[[Registry, Place], Workbench]


def make_bench(registry: Registry, place: Place) -> Workbench:
    """The workbench of a process."""
    return Workbench(registry, place.data_folder, torch.device(place.device))
