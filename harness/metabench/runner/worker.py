"""What runs in a worker process. Light to import: PyTorch and plugins load within the first job.

So whatever goes wrong while they load is that job's failure, with a name and a log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import pickle
import signal
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.errors import MetabenchError, UsageError
from metabench.runner.allocator import keep_freed_memory

if TYPE_CHECKING:
    from metabench.engine.precision import Precision
    from metabench.engine.progress import Progress
    from metabench.runner.bench import Workbench
    from metabench.runner.jobs import JobResult
    from metabench.store.store import Store

PROGRESS_EVERY_S = 0.2
OOM_SCORE = 500
"""Workers are to be killed before anything else of the user's when memory runs out."""


@dataclass(frozen=True)
class Place:
    """Where and with what a worker works.

    Attributes:
        results, data_folder: folders.
        device: such as cpu or cuda:0.
        unread: see `Workbench`.
        classes: algorithms beside those of plugins, as (module, qualified name).
        strict_plugins: a plugin that does not load is fatal.
        engine, precision, threads: see `Workbench`.
    """

    results: Path
    data_folder: Path
    device: str
    unread: str
    classes: tuple[tuple[str, str], ...] = ()
    strict_plugins: bool = False
    engine: str = "auto"
    precision: Precision = "float32"
    threads: int = 1


def initialise(parent: int) -> None:
    """Begin a worker process, before its first job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # standard output is for results
    faulthandler.enable()
    # Those of a job go to its log. What is left comes from plugins as they load, and the run's own
    # process, which loads the same ones, has said it.
    warnings.showwarning = _said_before
    # Before PyTorch is loaded: it sets its own threads, its libraries read these.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    keep_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _said_before(*_args: object, **_more: object) -> None:
    pass


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def work(job: bytes, place: Place, note: Path) -> JobResult:
    """Do a job.

    Args:
        job: pickled, so that nothing is imported where the job is received.
        place: where.
        note: the file that tells the parent which process this is and how far it got.
    """
    facts = {"pid": os.getpid(), "ready": False, "progress": None}
    write_note(note, facts)
    from metabench.runner.jobs import JobResult, failure_of, run_job

    try:
        bench, store = _bench_of(place)
    except MetabenchError as error:  # no job can do without
        return JobResult(0.0, failure_of(error, "start"), stop=error)
    write_note(note, {**facts, "ready": True})
    last = 0.0

    def monitor(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY_S:
            last = now
            write_note(note, {**facts, "ready": True, "progress": vars(progress)})

    return run_job(pickle.loads(job), bench, store, monitor, capture=True)


@functools.cache
def _bench_of(place: Place) -> tuple[Workbench, Store]:
    import torch

    import metabench.clock.timer  # noqa: F401  before any plugin can replace a clock
    from metabench.plugins import load_registry
    from metabench.runner.bench import Workbench
    from metabench.store.store import Store

    # The run's own process has warned of plugins that do not load.
    registry = load_registry(strict=place.strict_plugins, warn=lambda line: None)
    registry = registry.with_classes([_imported(*names) for names in place.classes])
    device = torch.device(place.device)
    bench = Workbench(
        registry,
        place.data_folder,
        device,
        place.unread,
        place.engine,
        place.precision,
        place.threads,
    )
    return bench, Store(place.results)


def _imported(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"a worker cannot import {module}.{name}: {type(error).__name__}: {error}",
            "write the class into a module on the path, or run in this process, without jobs",
        ) from error


def write_note(note: Path, values: dict[str, Any]) -> None:
    """Replace the note; progress is not worth a cell, so nothing is raised."""
    draft = note.with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(values), encoding="utf-8")
        draft.replace(note)
