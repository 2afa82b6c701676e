"""From what was asked for to a matrix of cells: looked up and checked, but not begun."""

from __future__ import annotations

import inspect
import logging
import math
import numbers
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, SupportsInt, TypeGuard, TypeVar

from metabench.data.folder import data_folder
from metabench.engine.modes import resolve_engine
from metabench.engine.numerics import process_kept, resolve_device
from metabench.engine.precision import resolve_precision
from metabench.errors import UsageError
from metabench.experiment.outcome import Experiment
from metabench.plugins import registry
from metabench.registry import Registry
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.environment import default_jobs
from metabench.runner.matrix import Filters, build_matrix
from metabench.runner.run import RunOptions, Watch, bench_of, run_cells
from metabench.runner.suite import Suite, open_suite
from metabench.store import result_folder
from metabench.store.store import MARK, Store

if TYPE_CHECKING:
    from metabench.api.algorithm import Algorithm

log = logging.getLogger("metabench.runner")

P = ParamSpec("P")
T = TypeVar("T")
Texts = str | Sequence[str] | None
CellState = Literal["finished", "to run", "error", "out-of-memory", "nan", "timeout", "killed"]


@dataclass(frozen=True)
class Prepared:
    """What `run` was asked for: looked up and checked, but not begun.

    Attributes:
        suite: the suite, with classes that it did not name.
        command_name: how a command line names it.
        registry: plugins, and the classes.
        cells: the matrix.
        options: how it is run.
        watch: is told what happens.
    """

    suite: Suite
    command_name: str
    registry: Registry
    cells: list[Cell]
    options: RunOptions
    watch: Watch | None = None

    def run(self, watch: Watch | None = None) -> Experiment:
        """Run it; `watch`: instead of the one that it was prepared with."""
        watch = watch or self.watch
        result = run_cells(
            self.cells, self.registry, self.options, suite=self.command_name, watch=watch
        )
        return Experiment(self.suite.name, self.options.results, result)

    @process_kept()
    def states(self) -> list[tuple[Cell, CellState]]:
        """Which cells are finished, and how the others failed, without running any.

        Raises:
            ProtocolError, UsageError: a cell that cannot be run.
        """
        options = self.options
        bench = bench_of(self.registry, options)
        there = (options.results / MARK).exists()
        store = Store.open(options.results, create=False) if there else None
        return [(cell, _state(cell, bench, store)) for cell in self.cells]


def _state(cell: Cell, bench: Workbench, store: Store | None) -> CellState:
    if bench.dataset(cell).availability() != "ready":  # nor can its key be told
        return "to run"
    bench.check(cell)
    if store is None:
        return "to run"
    key = bench.identity(cell).key
    if store.find(key) is not None:
        return "finished"
    failed = store.failure(key)
    return failed.failure.status if failed is not None else "to run"


def prepare(
    suite: str | Path,
    *,
    algorithms: str | type[Algorithm] | Sequence[str | type[Algorithm]] | None = None,
    backbones: Texts = None,
    datasets: Texts = None,
    protocols: Texts = None,
    exclude: Texts = None,
    seeds: int | Sequence[int] | None = None,
    settings: Texts = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "float32",
    jobs: int | Literal["auto"] | None = None,
    threads: int | None = None,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    timeout: float | None = None,
    failed: bool = False,
    fail_fast: bool = False,
    fresh: bool = False,
    watch: Watch | None = None,
    strict_plugins: bool = False,
) -> Prepared:
    """Look up and check what `run` is asked for; see there, its signature is this one.

    Raises:
        UsageError: something that cannot be meant.
    """
    _check_which(failed, fresh)
    _check_workers(jobs, threads, timeout)
    results = result_folder(out)
    wanted = [algorithms] if isinstance(algorithms, str | type) else list(algorithms or [])
    classes = tuple(a for a in wanted if isinstance(a, type))
    known = registry(strict=True) if strict_plugins else registry()
    opened = open_suite(str(suite), known)
    known = known.with_classes(classes) if classes else known
    opened = opened.with_algorithms(_added(opened, known, wanted))
    filters = Filters(
        algorithms=[a if isinstance(a, str) else a.name for a in wanted],
        backbones=_listed(backbones),
        datasets=_listed(datasets),
        protocols=_listed(protocols),
        exclude=_listed(exclude),
        seeds=_seeds(seeds),
        settings=_listed(settings),
    )
    cells = build_matrix(opened, known, filters)
    place = resolve_device(device)
    resolve_engine(engine, place.type, order=2)
    for cls in classes if jobs is not None else ():
        _check_importable(cls)
    options = RunOptions(
        results=results,
        data_folder=data_folder(data_dir),
        device=place,
        jobs=default_jobs(place, len(cells)) if jobs == "auto" else jobs,
        timeout=timeout,
        fresh=fresh,
        failed_only=failed,
        fail_fast=fail_fast,
        strict_plugins=strict_plugins,
        engine=engine,
        precision=resolve_precision(precision, place.type),
        # Who says how many workers leaves the other cores to somebody else.
        threads=1 if threads is None and type(jobs) is int else threads,
        classes=classes,
    )
    return Prepared(opened, str(suite), known, cells, options, watch)


def _added(suite: Suite, known: Registry, wanted: Sequence[str | type[Algorithm]]) -> list[str]:
    """The classes, and what was asked for by name, is registered, and isn't in the suite."""
    there = {entry.name for entry in suite.algorithms}
    names = [a for a in wanted if isinstance(a, str) and a in known.algorithms and a not in there]
    for name in names:
        log.warning(
            "suite %s does not name %s: it comes as its plugin has it by default, on %s",
            *(suite.name, name, suite.backbones[0].label),
        )
    return [*names, *(a.name for a in wanted if isinstance(a, type))]


def with_signature_of(
    other: Callable[P, Any],
) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function the parameters of another, for type checkers, `help()` and completion."""

    def decorate(function: Callable[..., T]) -> Callable[P, T]:
        returns = inspect.signature(function).return_annotation
        signature = inspect.signature(other).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def _listed(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts or [])


def _is_whole(value: object) -> TypeGuard[SupportsInt]:
    """Whether it is a whole number, NumPy's among them; a truth value is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_which(failed: bool, fresh: bool) -> None:
    if failed and fresh:
        raise UsageError("failed and fresh exclude each other", "fresh forgets what failed")


def _check_workers(jobs: object, threads: object, timeout: float | None) -> None:
    if timeout is not None and jobs is None:
        raise UsageError("a timeout needs workers", "say how many: jobs=1")
    _check_count("jobs", jobs)
    _check_count("threads", threads)
    _check_timeout(timeout)


_COUNTED = {
    "jobs": ("workers", 'a whole number from 1, "auto", or None for none beside this process'),
    "threads": ("cores", "a whole number from 1, or None for the cores that are left"),
}


def _check_count(name: str, count: object) -> None:
    automatic = count is None or (name == "jobs" and count == "auto")
    if automatic or (type(count) is int and count >= 1):
        return
    things, hint = _COUNTED[name]
    raise UsageError(f"{name} = {count!r} is no number of {things}", hint)


def _check_timeout(timeout: object) -> None:
    if timeout is None:
        return
    if (
        isinstance(timeout, int | float)
        and not isinstance(timeout, bool)
        and 0 < timeout < math.inf
    ):
        return
    raise UsageError(
        f"a timeout of {timeout!r} is no time", "give seconds, above 0, or leave it away"
    )


def _seeds(seeds: object) -> int | list[int] | None:
    """A number of seeds, or a list of them; how many and which there may be is checked later."""
    if seeds is None:
        return None
    if _is_whole(seeds):
        return int(seeds)
    if isinstance(seeds, Collection) and not isinstance(seeds, str | bytes):
        whole = [int(seed) for seed in seeds if _is_whole(seed)]
        if len(whole) == len(seeds):
            return whole
    raise UsageError(
        f"seeds = {seeds!r} is neither a number of seeds nor a list of whole numbers",
        "seeds=3, or seeds=[0, 1, 2]",
    )


def _check_importable(cls: type) -> None:
    """Raise UsageError for a class that only this process has."""
    typed = cls.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if typed or "<locals>" in cls.__qualname__:
        raise UsageError(
            f"workers cannot import the class {cls.__qualname__}: it was defined"
            f" {'in a notebook or at a prompt' if typed else 'inside a function'}",
            "write it into a module, or run in this process, without jobs",
        )
