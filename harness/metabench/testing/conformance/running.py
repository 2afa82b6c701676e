"""Running checks: here, or each in a process that may hang or die without harming the others."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

import metabench
from metabench.clock import timer
from metabench.errors import UsageError, unknown_name
from metabench.runner.executors import worker_pool
from metabench.testing.conformance.finding import (
    Check,
    NonconformityError,
    NotApplicableError,
    Result,
    place,
)

if TYPE_CHECKING:
    from metabench.testing.conformance.target import Subject

STARTING = 120.0
"""Seconds that loading PyTorch and the plugin may take: a cold disk is slow."""


class Planned(NamedTuple):
    """A check that is to be run.

    Attributes:
        kind, name: of the plugin.
        check, what, patience: see `Check`.
        look_at: where the plugin stands, should the check not end.
    """

    kind: str
    name: str
    check: str
    what: str
    patience: int
    look_at: str


class Asked(NamedTuple):
    """What is checked.

    Attributes:
        target: see `target.resolved`.
        folder: where data sets are; None: the user's data folder.
        only: names of checks; none: all.
        scratch: a folder for what is made; None: one that goes with the process.
        settings: hyper-parameters, as `KEY=VALUE`; none: the plugin's own.
    """

    target: str
    folder: Path | None = None
    only: tuple[str, ...] = ()
    scratch: Path | None = None
    settings: tuple[str, ...] = ()


def run_checks(asked: Asked, timeout: float) -> Iterator[Result]:
    """Run them one after the other in a worker process; a new one where a check kills it.

    Args:
        asked: what.
        timeout: seconds that one check may take.

    Raises:
        MetabenchError: nothing can be checked, see `target.resolved`.
    """
    pool = worker_pool(1, multiprocessing.get_context("spawn"))
    # A worker that is killed removes nothing.
    with tempfile.TemporaryDirectory() as scratch:
        asked = asked._replace(scratch=Path(scratch))
        try:
            planned: list[Planned] = _outcome(pool.schedule(plan, args=[asked], timeout=STARTING))
            for one in planned:
                result = _one(pool, asked, one, timeout * one.patience)
                yield result
                if result.status == "failed":  # its worker may be gone, and a new one has to load
                    _outcome(pool.schedule(plan, args=[asked], timeout=STARTING))
        finally:
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()


def _one(pool: ProcessPool, asked: Asked, planned: Planned, limit: float) -> Result:
    """The result of one check, whatever becomes of its process."""
    start = timer.seconds()

    def broken(expected: str, happened: str) -> Result:
        return Result(
            plugin=f"{planned.kind} {planned.name}",
            check=planned.check,
            status="failed",
            seconds=timer.seconds() - start,
            expected=expected,
            happened=happened,
            look_at=planned.look_at,
        )

    try:
        found: Result = pool.schedule(run_planned, args=[asked, planned], timeout=limit).result()
    except TimeoutError:
        return broken(f"it ends within {limit:g} s", "it did not end")
    except ProcessExpired as error:
        return broken(planned.what, f"its process died (exit code {error.exitcode})")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what could not cross the process boundary as it was
        return broken(planned.what, _told(error))
    return found


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ProcessExpired as error:
        raise UsageError(f"the process that loads it died (exit code {error.exitcode})") from error
    except TimeoutError as error:
        raise UsageError(f"it did not load within {STARTING:g} s") from error


# In the worker.


@functools.cache
def subjects(asked: Asked) -> list[Subject]:
    """What was asked for, loaded once a process."""
    import torch

    from metabench.testing.conformance.target import resolved

    torch.set_num_threads(1)
    return resolved(asked.target, asked.folder, asked.scratch, asked.settings)


def plan(asked: Asked) -> list[Planned]:
    """All checks of what was asked for."""
    from metabench.testing.conformance.target import CHECKS

    found = subjects(asked)
    known = {check.name for subject in found for check in CHECKS[subject.entry.kind]}
    for name in asked.only:
        if name not in known:
            raise unknown_name("check", name, known)
    return [
        Planned(
            subject.entry.kind,
            subject.entry.name,
            check.name,
            check.what,
            check.patience,
            place(getattr(subject, "cls", None)),
        )
        for subject in found
        for check in CHECKS[subject.entry.kind]
        if not asked.only or check.name in asked.only
    ]


def run_planned(asked: Asked, planned: Planned) -> Result:
    """Run one of them."""
    from metabench.testing.conformance.target import CHECKS

    [subject] = [
        s for s in subjects(asked) if (s.entry.kind, s.entry.name) == (planned.kind, planned.name)
    ]
    [check] = [c for c in CHECKS[subject.entry.kind] if c.name == planned.check]
    return run_check(subject, check)


def run_check(subject: Subject, check: Check) -> Result:
    """Run a check in this process."""
    plugin = f"{subject.entry.kind} {subject.entry.name}"
    start, cls = timer.seconds(), getattr(subject, "cls", None)

    def result(**facts: Any) -> Result:
        return Result(plugin, check.name, seconds=timer.seconds() - start, **facts)

    try:
        remark = check.run(subject)
    except NonconformityError as error:
        return result(
            status="failed",
            expected=error.expected,
            happened=error.happened,
            look_at=_own_place(error.at, cls),
        )
    except NotApplicableError as error:
        return result(status="skipped", remark=str(error))
    except (Exception, SystemExit) as error:
        return result(
            status="failed",
            expected=check.what,
            happened=_told(error),
            look_at=_line(error, cls),
        )
    return result(status="passed", remark=remark or "")


def _told(error: BaseException) -> str:
    """Its kind and the first line of what it says."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an exception whose __str__ raises
        lines = []
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"


def _own_place(at: object, cls: type | None) -> str:
    """Where to look; the class itself where what was called is not its own, but the harness's."""
    found = place(at)
    inherited = found.startswith(str(Path(metabench.__file__).parent))
    return place(cls) if inherited and cls is not None else found


def _line(error: BaseException, cls: type | None) -> str:
    """`file:line` of the innermost frame in the plugin's own file, else of the innermost."""
    frames = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    own = inspect.getsourcefile(cls) if cls is not None and cls.__module__ in sys.modules else None
    inner = [frame for frame in frames if frame[0] == own] or frames
    return "{}:{}".format(*inner[-1])
