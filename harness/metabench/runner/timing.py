"""Timing finished cells once more: `metabench time`, and nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metabench.clock.measure import plan_for
from metabench.engine.numerics import process_kept
from metabench.registry import Registry
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.environment import this_machine
from metabench.runner.jobs import Job
from metabench.runner.run import (
    LazyExecutor,
    RunOptions,
    Unwatched,
    Watch,
    bench_of,
    run_timings,
)
from metabench.store.record import Failure
from metabench.store.store import Store


@dataclass
class TimedCells:
    """What came of timing.

    Attributes:
        machine: the name under which times of this machine are kept.
        times: what stands in the result folder now, by cell; see `Times.to_json`.
        failures: cells that could not be timed.
        unfinished: cells that the result folder does not hold as they would be run now.
    """

    machine: str
    times: list[tuple[Cell, dict[str, Any]]] = field(default_factory=list)
    failures: list[tuple[Cell, Failure]] = field(default_factory=list)
    unfinished: list[Cell] = field(default_factory=list)


@process_kept()
def time_cells(
    cells: Sequence[Cell],
    registry: Registry,
    options: RunOptions,
    *,
    seconds: float,
    kernels: bool = False,
    watch: Watch | None = None,
) -> TimedCells:
    """Time the finished ones of these cells, whether or not they were timed before.

    Of cells that differ in their training seed only, the first finished one stands for all.

    Args:
        seconds: about how long a cell is timed.
        kernels: say too where the time goes.
        watch: is told what happens.

    Raises:
        StoreError: there is no result folder, or it can't be used.
    """
    watch = watch or Unwatched()
    store = Store.open(options.results, create=False)
    bench = bench_of(registry, options)
    result = TimedCells(this_machine(options.device))
    finished: dict[object, tuple[Cell, str]] = {}
    for cell in cells:
        key = _finished_key(bench, store, cell)
        if key is None:
            result.unfinished.append(cell)
        else:
            finished.setdefault(cell.row, (cell, key))
    jobs = [
        Job("timing", cell, key, timing=plan_for(seconds), kernels=kernels)
        for cell, key in finished.values()
    ]
    executor = LazyExecutor(options, bench, store, watch, jobs=1)
    try:
        failed = {job.key: failure for job, failure in run_timings(executor, jobs, watch)}
    finally:
        executor.close()
    for job in jobs:
        if job.key in failed:
            result.failures.append((job.cell, failed[job.key]))
        elif (times := store.read_timing(job.key, result.machine)) is not None:
            result.times.append((job.cell, times))
    return result


def _finished_key(bench: Workbench, store: Store, cell: Cell) -> str | None:
    if bench.dataset(cell).availability() != "ready":  # nor can its key be told
        return None
    bench.check(cell)
    key = bench.identity(cell).key
    return key if store.find(key) is not None else None
