"""Jobs: what a worker is asked to do, how it does it, and what it answers. All plain data."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metabench.clock.measure import IN_RUN, TimingPlan, measure
from metabench.data.folder import using_data_folder
from metabench.engine.apart import sharing_tasks
from metabench.engine.chunks import is_out_of_memory
from metabench.engine.numerics import set_up_process
from metabench.engine.progress import Monitor, Progress
from metabench.errors import MetabenchError, NotANumberError, PluginError, StoreError
from metabench.runner.bench import Workbench
from metabench.runner.cell import CellRun
from metabench.runner.cells import Cell
from metabench.runner.environment import this_machine
from metabench.store.files import FULL
from metabench.store.record import CHECKPOINT, LOG, CellRecord, Failure
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
        timing, kernels: of a timing: how often, and whether to say too where the time goes.
    """

    kind: JobKind
    cell: Cell
    key: str
    needs: tuple[str, ...] = ()
    command: str = ""
    timing: TimingPlan = IN_RUN
    kernels: bool = False


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        seconds: how long it took.
        failure: None where it succeeded.
        validation: the validation score of a finished cell, if it was validated.
        warnings: what was logged as a warning meanwhile.
        stop: set where going on makes no sense for any job: a full disk, for instance.
    """

    seconds: float
    failure: Failure | None = None
    validation: float | None = None
    warnings: tuple[str, ...] = ()
    stop: MetabenchError | None = None


class CodeChangedError(PluginError):
    """A worker that started later read other code than the process that planned the run."""


def run_job(
    job: Job, bench: Workbench, store: Store, monitor: Monitor, *, capture: bool = False
) -> JobResult:
    """Do a job in this process; whatever goes wrong in it becomes a `Failure`.

    Args:
        capture: send what is printed meanwhile to the job's log.
    """
    started = time.perf_counter()
    last = Progress("start", 0, 0)
    warnings: list[str] = []

    def watch(progress: Progress) -> None:
        nonlocal last
        last = progress
        monitor(progress)

    set_up_process(bench.device)
    score: float | None = None
    try:
        with using_data_folder(bench.data_folder):
            if job.kind == "timing":
                _time(job, bench, store)
            else:
                record = _run(job, bench, store, watch, warnings, capture)
                score = record.result.validation_score if record else None
    except (Exception, SystemExit) as error:
        where = f"{last.phase} {last.step}/{last.total}" if last.total else last.phase
        return JobResult(
            time.perf_counter() - started,
            failure_of(error, where),
            warnings=tuple(warnings),
            stop=stopping(error),
        )
    return JobResult(time.perf_counter() - started, None, score, tuple(warnings))


def _run(
    job: Job, bench: Workbench, store: Store, monitor: Monitor, warnings: list[str], capture: bool
) -> CellRecord | None:
    record: CellRecord | None = None
    if job.kind == "cell" and bench.identity(job.cell).key != job.key:
        raise CodeChangedError(
            f"the code behind {job.cell.id} was edited while the run was going on",
            "run the same again: what is finished is kept where it is still the same",
        )
    if job.kind == "cell" and (finished := store.find(job.key)) is not None:
        return finished  # by another run into the same folder, meanwhile
    with store.claim(job.key) as partial:
        log_file = partial.folder / LOG
        run = CellRun(bench, store, job.cell, job.command, monitor)
        with _logged_to(log_file, warnings, capture):
            log.info("%s %s", job.kind, job.cell.id)
            try:
                with sharing_tasks(bench.threads):
                    if job.kind == "phase":
                        run.run_shared_phase(partial, log_file)
                    else:
                        record = run.run(partial, log_file)
            except (Exception, SystemExit):
                log.info("%s", traceback.format_exc())
                raise
        partial.discard()
    return record


def _time(job: Job, bench: Workbench, store: Store) -> None:
    trial = bench.trial(job.cell)
    record = store.find(job.key)
    refitted = record is not None and record.result.selected_step is not None
    again = job.cell.recipe.refit and refitted
    # A layer may have as many outputs as the classes that it was trained on.
    bank = trial.refit_bank if again else trial.training_bank
    algorithm = trial.build(bank)
    tensors, _ = read_tensors(store.folder(job.key) / CHECKPOINT)
    algorithm.load_state_dict(tensors)
    times = measure(trial, algorithm, bank, plan=job.timing, kernels=job.kernels)
    store.write_timing(job.key, this_machine(bench.device), times.to_json())


def failure_of(error: BaseException, where: str) -> Failure:
    """How a cell failed, by its exception."""
    text = _text(error)
    status: Literal["nan", "out-of-memory", "error"] = "error"
    if is_out_of_memory(error):
        status = "out-of-memory"
    elif isinstance(error, NotANumberError):
        status = "nan"
    return Failure(
        status=status,
        exception=type(error).__name__,
        message=_printable(text),
        traceback=_printable("".join(traceback.format_exception(error))),
        where=where,
    )


def _printable(text: str) -> str:
    """Without half characters, which no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _text(error: BaseException) -> str:
    if isinstance(error, MetabenchError):
        return "; ".join(filter(None, [error.message, error.hint]))
    try:
        return str(error)
    except Exception:  # a plugin's exception may be broken itself
        return ""


def stopping(error: BaseException) -> MetabenchError | None:
    """What ends the whole run: something that every cell would meet."""
    if isinstance(error, StoreError | CodeChangedError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        where = f": {error.filename}" if error.filename else ""
        return StoreError(f"the disk is full{where}", "free some space, then run the same again")
    return None


class _JobLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A line that cannot be written is not worth a cell."""


class _Collector(logging.Handler):
    """Keeps the texts of warnings and worse."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _logged_to(path: Path, warnings: list[str], capture: bool) -> Iterator[None]:
    """Send this process's log to a file and nowhere else; metabench's own warnings to a list too.

    Args:
        capture: the same with what is printed, also by a library in C.
    """
    handler = _JobLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with ExitStack() as cleanup:
        cleanup.callback(handler.close)
        cleanup.enter_context(_handled_by("metabench", handler, _Collector(warnings)))
        cleanup.enter_context(_handled_by("py.warnings", handler))
        logging.captureWarnings(True)
        cleanup.callback(logging.captureWarnings, False)
        if capture and handler.stream is not None:
            cleanup.enter_context(_printed_to(handler.stream.fileno()))
        yield


@contextmanager
def _handled_by(name: str, *handlers: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = list(handlers), False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


@contextmanager
def _printed_to(descriptor: int) -> Iterator[None]:
    """Standard output and standard error of this process go to an open file."""
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        for number, old in enumerate(kept, start=1):
            os.dup2(old, number)
            os.close(old)
