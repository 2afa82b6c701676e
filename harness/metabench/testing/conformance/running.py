"""Running checks: here, or each in a process that may hang or die without harming the others."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from metabench.errors import UsageError, unknown_name
from metabench.runner.worker import initialise
from metabench.testing.conformance.finding import (
    Check,
    NonconformityError,
    NotApplicableError,
    Result,
    place,
)

if TYPE_CHECKING:
    from metabench.testing.conformance.target import Subject

TIMEOUT = 15.0
"""Seconds that one check may take."""
STARTING = 120.0
"""Seconds that loading PyTorch and the plugin may take: a cold disk is slow."""


class Planned(NamedTuple):
    """A check that is to be run: the plugin's kind and name, the check's name and meaning."""

    kind: str
    name: str
    check: str
    what: str


class Asked(NamedTuple):
    """What is checked.

    Attributes:
        target: see `target.resolved`.
        folder: where data sets are; None: the user's data folder.
        only: names of checks; none: all.
    """

    target: str
    folder: Path | None = None
    only: tuple[str, ...] = ()


def run_checks(
    asked: Asked, timeout: float = TIMEOUT, watch: Callable[[Planned], None] | None = None
) -> Iterator[Result]:
    """Run them one after the other in a worker process; a new one where a check kills it.

    Raises:
        MetabenchError: nothing can be checked, see `target.resolved`.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(
        max_workers=1, context=context, initializer=initialise, initargs=[os.getpid()]
    )
    try:
        planned: list[Planned] = _outcome(pool.schedule(plan, args=[asked], timeout=STARTING))
        for one in planned:
            if watch is not None:
                watch(one)
            start = time.perf_counter()
            future = pool.schedule(run_planned, args=[asked, one], timeout=timeout)
            try:
                yield future.result()
            except TimeoutError:
                yield _broken(one, start, f"it ends within {timeout:g} s", "it did not end")
            except ProcessExpired as error:
                told = f"its process died (exit code {error.exitcode})"
                yield _broken(one, start, one.what, told)
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ProcessExpired as error:
        raise UsageError(f"the process that loads it died (exit code {error.exitcode})") from error
    except TimeoutError as error:
        raise UsageError(f"it did not load within {STARTING:g} s") from error


def _broken(planned: Planned, start: float, expected: str, happened: str) -> Result:
    return Result(
        plugin=f"{planned.kind} {planned.name}",
        check=planned.check,
        status="failed",
        seconds=time.perf_counter() - start,
        expected=expected,
        happened=happened,
    )


# In the worker.


@functools.cache
def subjects(asked: Asked) -> list[Subject]:
    """What was asked for, loaded once a process."""
    import torch

    from metabench.testing.conformance.target import resolved

    torch.set_num_threads(1)
    return resolved(asked.target, asked.folder)


def plan(asked: Asked) -> list[Planned]:
    """All checks of what was asked for."""
    from metabench.testing.conformance.target import CHECKS

    found = subjects(asked)
    known = {check.name for subject in found for check in CHECKS[subject.entry.kind]}
    for name in asked.only:
        if name not in known:
            raise unknown_name("check", name, known)
    return [
        Planned(subject.entry.kind, subject.entry.name, check.name, check.what)
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
    start = time.perf_counter()

    def result(**facts: Any) -> Result:
        return Result(plugin, check.name, seconds=time.perf_counter() - start, **facts)

    try:
        remark = check.run(subject)
    except NonconformityError as error:
        return result(
            status="failed",
            expected=error.expected,
            happened=error.happened,
            look_at=place(error.at),
        )
    except NotApplicableError as error:
        return result(status="skipped", remark=str(error))
    except Exception as error:
        return result(
            status="failed",
            expected=check.what,
            happened=f"{type(error).__name__}: {_first_line(error)}",
            look_at=_line(error, getattr(subject, "cls", None)),
        )
    return result(status="passed", remark=remark or "")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else ""


def _line(error: Exception, cls: type | None) -> str:
    """`file:line` of the innermost frame in the plugin's own file, else of the innermost."""
    frames = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    own = inspect.getsourcefile(cls) if cls is not None and cls.__module__ in sys.modules else None
    inner = [frame for frame in frames if frame[0] == own] or frames
    return "{}:{}".format(*inner[-1])
