"""Executors: in this process, or in worker processes that may die without harming the run."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from metabench.engine.progress import Progress
from metabench.plugins import load_registry
from metabench.runner.bench import Workbench
from metabench.runner.jobs import Job, JobResult, Place, failure_of, make_bench, run_job
from metabench.store.record import Failure
from metabench.store.store import Store

ProgressWatch = Callable[[Job, Progress], None]

PROGRESS_EVERY_S = 0.2
OOM_SCORE = 500
"""Workers are to be killed before anything else of the user's when memory runs out."""


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


class Workers:
    """Worker processes, started by spawn. A worker that dies costs the job it was at."""

    def __init__(
        self,
        jobs: int,
        place: Place,
        watch: ProgressWatch,
        *,
        timeout: float | None = None,
        strict_plugins: bool = False,
    ) -> None:
        self.slots = jobs
        self._place, self._watch, self._timeout = place, watch, timeout
        self._strict = strict_plugins
        # Progress goes through files: a queue's lock would stay taken if a worker were killed.
        self._notes = Path(tempfile.mkdtemp(prefix="metabench-"))
        self._ended: queue.Queue[tuple[Job, JobResult]] = queue.Queue()
        self._running: dict[int, tuple[Job, Path, bytes]] = {}
        self._count = 0
        self._pool = ProcessPool(
            max_workers=jobs,
            context=multiprocessing.get_context("spawn"),
            initializer=_initialise_worker,
            initargs=[os.getpid()],
        )

    def start(self, job: Job) -> None:
        number, self._count = self._count, self._count + 1
        note = self._notes / f"{number}.json"
        self._running[number] = (job, note, b"")
        future = self._pool.schedule(
            _work, args=[job, self._place, self._strict, note], timeout=self._timeout
        )
        begun = time.perf_counter()
        future.add_done_callback(lambda f: self._note_end(number, job, f, begun))

    def _note_end(self, number: int, job: Job, future: Future[JobResult], begun: float) -> None:
        seconds = time.perf_counter() - begun
        try:
            result = future.result()
        except TimeoutError:
            text = f"it took longer than {self._timeout:g} s"
            result = JobResult(seconds, Failure(status="timeout", message=text))
        except ProcessExpired as error:
            result = JobResult(seconds, Failure(status="killed", message=_death(error)))
        except BaseException as error:  # whatever could not cross the process boundary
            result = JobResult(seconds, failure_of(error, "worker"))
        self._running.pop(number, None)
        self._ended.put((job, result))

    def wait(self) -> tuple[Job, JobResult]:
        while True:
            try:
                return self._ended.get(timeout=PROGRESS_EVERY_S)
            except queue.Empty:
                self._pass_on_progress()

    def _pass_on_progress(self) -> None:
        for number, (job, note, seen) in list(self._running.items()):
            with contextlib.suppress(OSError, ValueError):
                data = note.read_bytes()
                if data != seen:
                    self._watch(job, Progress(**json.loads(data)))
                    self._running[number] = (job, note, data)

    def close(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        shutil.rmtree(self._notes, ignore_errors=True)


def _death(error: ProcessExpired) -> str:
    code = error.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


# What runs in a worker.


def _initialise_worker(parent: int) -> None:
    """Light: PyTorch and plugins load in the first task, where their failure has a name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Before PyTorch is loaded: it sets its own threads, its libraries read these.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@functools.cache
def _bench_of(place: Place, strict: bool) -> tuple[Workbench, Store]:
    # The run's own process has warned of plugins that do not load.
    registry = load_registry(strict=strict, warn=lambda line: None)
    return make_bench(registry, place), Store(place.results)


def _work(job: Job, place: Place, strict: bool, note: Path) -> JobResult:
    bench, store = _bench_of(place, strict)
    last = 0.0

    def monitor(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY_S:
            last = now
            _write_note(note, vars(progress))

    return run_job(job, bench, store, monitor)


def _write_note(note: Path, values: dict[str, Any]) -> None:
    draft = note.with_suffix(".new")
    with contextlib.suppress(OSError):  # progress is not worth a cell
        draft.write_text(json.dumps(values), encoding="utf-8")
        draft.replace(note)
