"""The plan of a run: which cells are finished, which jobs are left, what has to come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.jobs import Job
from metabench.store.store import Store


@dataclass
class Plan:
    """What a run does.

    Attributes:
        keys: of all cells, in order.
        commands: the lines that run them again, in the same order.
        finished: cells that are in the result folder and are reused.
        left_out: cells that neither are finished nor are run (`--failed`).
        jobs: phases and cells, phases first.
    """

    cells: list[Cell]
    keys: list[str]
    commands: list[str] = field(default_factory=list)
    finished: list[Cell] = field(default_factory=list)
    left_out: list[Cell] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


def make_plan(
    bench: Workbench,
    store: Store,
    cells: Sequence[Cell],
    *,
    suite: str,
    fresh: bool = False,
    failed_only: bool = False,
) -> Plan:
    """Look at every cell before anything is trained.

    Args:
        suite: how the suite is named on the command line that runs a cell again.
        fresh: forget what the result folder holds of these cells, and run them all.
        failed_only: run those that failed, and no others.

    Raises:
        ProtocolError, UsageError, DataMissingError: a cell that cannot be run.
    """
    for cell in cells:
        bench.check(cell)
    keys = [bench.identity(cell).key for cell in cells]
    plan = Plan(list(cells), keys, [_command(bench, cell, suite) for cell in cells])
    phases: dict[str, Job] = {}
    jobs: list[Job] = []
    for cell, key, command in zip(plan.cells, plan.keys, plan.commands, strict=True):
        if fresh:
            store.remove(key)
        elif store.find(key) is not None:
            plan.finished.append(cell)
            continue
        if failed_only and store.failure(key) is None:
            plan.left_out.append(cell)
            continue
        needs = bench.shared_phase_key(cell)
        if needs is not None and needs not in phases:
            if fresh:
                store.phases.remove(needs)
            phases[needs] = Job("phase", cell, needs, command=command)
        jobs.append(Job("cell", cell, key, (needs,) if needs else (), command))
    missing = [job for key, job in phases.items() if store.find_phase(key) is None]
    plan.jobs = [*missing, *jobs]
    return plan


def _command(bench: Workbench, cell: Cell, suite: str) -> str:
    """The line that runs the cell again: in Python where the command line has no such algorithm."""
    entry = bench.registry.get("algorithm", cell.algorithm.name)
    if entry.plugin:
        return cell.command(suite)
    names = {"--dataset": "datasets", "--protocol": "protocols", "--backbone": "backbones"}
    names |= {"--set": "settings"}
    options: dict[str, list[str]] = {}
    for option, value in zip(cell.arguments[::2], cell.arguments[1::2], strict=True):
        if option in names:
            options.setdefault(names[option], []).append(value)
    shown = "".join(f", {name}={values!r}" for name, values in options.items())
    cls = entry.load().__qualname__
    return f"metabench.run({suite!r}, algorithms=[{cls}], seeds=[{cell.seed}]{shown})"


def timing_jobs(plan: Plan, store: Store, machine: str) -> list[Job]:
    """One timing for each row: its first finished cell, if no cell of the row is timed yet."""
    rows: dict[object, list[tuple[Cell, str]]] = {}
    for cell, key in zip(plan.cells, plan.keys, strict=True):
        if store.folder(key).is_dir():
            rows.setdefault(cell.row, []).append((cell, key))
    return [
        Job("timing", *members[0])
        for members in rows.values()
        if all(store.read_timing(key, machine) is None for _, key in members)
    ]
