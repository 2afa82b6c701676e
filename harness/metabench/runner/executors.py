"""Executors: in this process, or in worker processes that may die without harming the run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import RLock
from pathlib import Path
from typing import Any, Protocol

import psutil
from pebble import ProcessExpired, ProcessPool

from metabench.engine.progress import Progress
from metabench.errors import UsageError
from metabench.runner.bench import Workbench
from metabench.runner.jobs import Job, JobResult, failure_of, run_job
from metabench.runner.worker import PROGRESS_EVERY_S, Place, initialise, work
from metabench.store.machine import unique_name
from metabench.store.record import Failure
from metabench.store.store import Store

ProgressWatch = Callable[[Job, Progress], None]


class Executor(Protocol):
    """Runs jobs, up to `slots` at a time. It need not be local."""

    slots: int

    def start(self, job: Job) -> None:
        """Begin a job; there is a free slot."""

    def wait(self) -> tuple[Job, JobResult]:
        """Block until one of the begun jobs has ended."""

    def close(self) -> None:
        """End whatever still runs."""


class InProcess:
    """One job at a time in this process: for notebooks, and for classes defined there."""

    slots = 1

    def __init__(self, bench: Workbench, store: Store, watch: ProgressWatch) -> None:
        self._bench, self._store, self._watch = bench, store, watch
        self._begun: list[Job] = []

    def start(self, job: Job) -> None:
        self._begun.append(job)

    def wait(self) -> tuple[Job, JobResult]:
        job = self._begun.pop(0)
        return job, run_job(job, self._bench, self._store, functools.partial(self._watch, job))

    def close(self) -> None:
        pass


@dataclass
class _Running:
    """A job that a worker was handed.

    Attributes:
        note: the file in which the worker says how far it is.
        seen: its content when it was looked at last.
        pid: the worker's process; None before it has begun.
        ready: when its plugins and data were loaded; from then on the time limit counts.
        late: whether it was ended because of that.
        gone: how many looks in a row found no such process.
    """

    job: Job
    note: Path
    begun: float = field(default_factory=time.perf_counter)
    seen: bytes = b""
    pid: int | None = None
    ready: float | None = None
    late: bool = False
    gone: int = 0
    future: Future[JobResult] | None = None


class Workers:
    """Worker processes, started by spawn. A worker that dies costs the job it was at."""

    def __init__(
        self, jobs: int, place: Place, watch: ProgressWatch, *, timeout: float | None = None
    ) -> None:
        self.slots = jobs
        self._place, self._watch, self._timeout = place, watch, timeout
        # Progress goes through files: a queue's lock would stay taken if a worker were killed.
        self._notes = place.results / "tmp" / unique_name()
        self._notes.mkdir(parents=True)
        self._ended: queue.Queue[tuple[Job, JobResult]] = queue.Queue()
        self._running: dict[int, _Running] = {}
        self._count = 0
        self._any_began = False
        self._context = _Spawn()
        self._pool = worker_pool(self.slots, self._context)

    def start(self, job: Job) -> None:
        if not self._pool.active:  # every worker died at once, while they started perhaps
            self._stop_pool()
            self._pool = worker_pool(self.slots, self._context)
        number, self._count = self._count, self._count + 1
        running = self._running[number] = _Running(job, self._notes / f"{number}.json")
        args = [pickle.dumps(job), self._place, running.note]
        running.future = self._pool.schedule(work, args=args)
        running.future.add_done_callback(lambda future: self._note_end(number, future))

    def _note_end(self, number: int, future: Future[JobResult]) -> None:
        # Called by a thread of the pool.
        running = self._running.pop(number)
        result = self._result(future, running)
        self._any_began = self._any_began or not isinstance(result.stop, _NoWorkerError)
        self._ended.put((running.job, result))

    def _result(self, future: Future[JobResult], running: _Running) -> JobResult:
        seconds = time.perf_counter() - running.begun
        try:
            return future.result()
        except ProcessExpired as error:
            return JobResult(seconds, Failure(status="killed", message=_death(error.exitcode)))
        except CancelledError:  # by `_look`
            if running.late:
                text = f"it took longer than {self._timeout:g} s"
                return JobResult(seconds, Failure(status="timeout", message=text))
            return JobResult(seconds, Failure(status="killed", message=_death(0)))
        except BrokenProcessPool:
            failure = Failure(status="killed", message="its process died before it began")
            return JobResult(seconds, failure, stop=None if self._any_began else _NoWorkerError())
        except BaseException as error:  # whatever could not cross the process boundary
            return JobResult(seconds, failure_of(error, "worker"))

    def wait(self) -> tuple[Job, JobResult]:
        while True:
            try:
                return self._ended.get(timeout=PROGRESS_EVERY_S)
            except queue.Empty:
                for running in list(self._running.values()):
                    self._look(running)

    def _look(self, running: _Running) -> None:
        """Pass on how far a job is; end it when its time is over, or its process gone."""
        with contextlib.suppress(OSError, ValueError):
            data = running.note.read_bytes()
            if data != running.seen:
                running.seen = data
                note = json.loads(data)
                running.pid = note["pid"]
                if note["ready"] and running.ready is None:
                    running.ready = time.perf_counter()
                if note["progress"] is not None:
                    self._watch(running.job, Progress(**note["progress"]))
        if self._timeout is not None and running.ready is not None:
            running.late = time.perf_counter() - running.ready > self._timeout
        # The pool takes exit code 0 for no failure, and would wait for ever.
        running.gone = running.gone + 1 if running.pid and not _is_alive(running.pid) else 0
        if running.future is not None and (running.late or running.gone > 3):
            running.future.cancel()

    def close(self) -> None:
        with _interrupts_ignored():
            self._stop_pool()
            shutil.rmtree(self._notes, ignore_errors=True)

    def _stop_pool(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        # At once: what a killed worker leaves is whole, and pebble would wait for it politely.
        for running in list(self._running.values()):
            self._look_for_pid(running)
            if running.pid is not None:
                with contextlib.suppress(OSError):
                    os.kill(running.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        self._pool.join()

    def _look_for_pid(self, running: _Running) -> None:
        with contextlib.suppress(OSError, ValueError):
            running.pid = json.loads(running.note.read_bytes())["pid"]


def worker_pool(workers: int, context: SpawnContext) -> ProcessPool:
    """Worker processes that leave Ctrl-C to their parent, and end with it."""
    pool = ProcessPool(
        max_workers=workers, context=context, initializer=initialise, initargs=[os.getpid()]
    )
    # The threads that keep the pool, and so its workers, never see Ctrl-C, not even while a worker
    # starts: it is handled once, by the thread that asked for the pool. The tracker would unblock
    # it again where it is started within.
    resource_tracker.ensure_running()
    with _interrupts_blocked():
        assert pool.active  # which starts it
    return pool


class _Spawn(SpawnContext):
    """Starts processes by spawn; its locks live as long as it does.

    The pool drops its locks before it ends its workers. One that was just starting, in the place
    of one that died, would not find them and say so in a traceback.
    """

    def __init__(self) -> None:
        super().__init__()
        self._locks: list[RLock] = []

    def RLock(self) -> RLock:  # noqa: N802  (the name that it overrides)
        self._locks.append(super().RLock())
        return self._locks[-1]


class _NoWorkerError(UsageError):
    """Workers die as soon as they start."""

    def __init__(self, *texts: str) -> None:
        super().__init__(
            "no worker process could be started: each died at once, and said why above",
            "a script that asks for jobs has to keep its own statements under"
            ' `if __name__ == "__main__":`, or the workers run them again',
        )


def _death(code: Any) -> str:
    if isinstance(code, int) and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            why = " (by the system, if memory ran out)" if name == "SIGKILL" else ""
            return f"its process was killed by {name}{why}"
    return f"its process ended with exit code {code}"


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Threads and processes begun in here never get SIGINT."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Neither Ctrl-C nor SIGTERM disturbs the cleaning up after another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
