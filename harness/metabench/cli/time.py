"""`metabench time`: time the finished cells of a suite again, and say where the time goes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from metabench.cli.ending import keeping, tell
from metabench.cli.options import chosen_seeds, run_options, suite_option
from metabench.cli.output import format_options, print_rows, print_text
from metabench.cli.status import registered_suites
from metabench.errors import UsageError
from metabench.rendering import Format, Row, to_json

if TYPE_CHECKING:
    from metabench.experiment.prepared import Prepared
    from metabench.runner.cells import Cell
    from metabench.runner.timing import TimedCells

PARTS = ("adapt", "predict", "train_step")
# fmt: off
COLUMNS = (
    "cell", "adapt_ms", "predict_ms", "train_step_ms", "first_call_ms", "unstable", "share_of_peak",
)
FACTS = (
    "ms", "low_ms", "high_ms", "iqr_ms", "samples", "unstable", "first_ms", "flops",
    "share_of_peak",
)
# fmt: on
ALL_COLUMNS = ("cell", *(f"{part}_{fact}" for part in PARTS for fact in FACTS))
KERNELS = ("cell", "part", "kernel", "calls", "ms", "share")
NAMED = 5
SHOWN = 5
"""Kernels of a part in a table; the others are in the CSV and the JSON."""
FAILED = 1


@click.command("time")
@suite_option(default="all registered ones that were run into the result folder")
@run_options
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600, min_open=True),
    default=5.0,
    show_default=True,
    help="About how long a cell is timed.",
)
@click.option("--kernels", is_flag=True, help="Print too in which kernels the time is spent.")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    fmt: Format,
    quiet: bool,
    seconds: float,
    kernels: bool,
    seeds: int | None,
    seed: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Time the finished cells of a suite again, longer and with nothing beside them.

    One worker times, one cell after the other: adapting to an episode, predicting its queries, and
    a step of training. Where several seeds of a row are finished, the first stands for the row.
    A median stands with its 95% interval in brackets; first_call_ms is the first adaptation of a
    cell, with what is compiled or set up in it (in the first cell, also what PyTorch sets up);
    share_of_peak is of adapting and predicting together. The JSON has all figures and conditions,
    the CSV those of the clock; with --kernels, the CSV is of these. Times are kept in the result
    folder, where tables find them. Leave the machine alone meanwhile.
    """
    wanted = chosen_seeds(seeds, seed)
    strict = ctx.find_root().params.get("strict_plugins", False)
    suite = options.pop("suite")
    with keeping(ctx, "what was timed is kept", "All again with"):
        from metabench.cli.watch import watching
        from metabench.experiment.prepared import prepare
        from metabench.plugins import registry
        from metabench.runner.timing import time_cells
        from metabench.store.store import Store

        store = Store.open(options["out"], create=False)
        suites = [suite] if suite else registered_suites(store, registry().suites)
        asked = [
            prepare(name, seeds=wanted, jobs=1, strict_plugins=strict, **options) for name in suites
        ]
        with watching(quiet) as watch:
            timed = time_cells(
                [cell for one in asked for cell in one.cells],
                asked[0].registry,
                asked[0].options,
                seconds=seconds,
                kernels=kernels,
                watch=watch,
            )
    if not timed.times and not timed.failures:
        which = " or ".join(repr(one.suite.name) for one in asked)
        raise UsageError(
            f"no such cell of suite {which} is finished in {asked[0].options.results}",
            f"run them first: metabench run -s {shlex.quote(suites[0])}; metabench status --explain"
            " says why a finished one doesn't count",
        )
    _print(timed, fmt, kernels)
    _tell_conditions(timed)
    _tell_unfinished(asked, timed)
    for cell, failure in timed.failures:
        tell(f"{cell.id} could not be timed: {failure.message}")
    ctx.exit(FAILED if timed.failures else 0)


def _print(timed: TimedCells, fmt: Format, kernels: bool) -> None:
    """The times, and the kernels in a table behind them; a CSV has one table, the last of these."""
    if fmt == "json":
        rows = [{"cell": cell.id, **times} for cell, times in timed.times]
        print_text(to_json({"machine": timed.machine, "times": rows}))
        return
    if fmt == "csv" and not kernels:
        print_rows(_flat(timed.times), ALL_COLUMNS, fmt)
    elif fmt != "csv":
        print_rows([_row(cell, times) for cell, times in timed.times], COLUMNS, fmt)
        print_text("\n" if kernels else "")
    if kernels:
        most = None if fmt == "csv" else SHOWN
        print_rows(list(_kernel_rows(timed.times, most)), KERNELS, fmt)


def _row(cell: Cell, times: Mapping[str, Any]) -> Row:
    """A cell as people read it."""
    parts = times["parts"]
    medians = {
        f"{name}_ms": f"{part['ms']:.4g} [{part['low_ms']:.4g}, {part['high_ms']:.4g}]"
        for name, part in parts.items()
    }
    return {
        "cell": cell.id,
        **medians,
        "first_call_ms": f"{parts['adapt']['first_ms']:.4g}",
        "unstable": ", ".join(times["unstable"]),
        "share_of_peak": _share(times),
    }


def _share(times: Mapping[str, Any]) -> float | None:
    """Of adapting and predicting together; None where something can't be counted."""
    parts = [times["parts"][name] for name in ("adapt", "predict")]
    if any(part["flops"] is None for part in parts):
        return None
    seconds = sum(part["ms"] for part in parts) / 1e3
    share: float = (
        sum(part["flops"] for part in parts) / seconds / times["conditions"]["peak_flops"]
    )
    return share


def _flat(times: Iterable[tuple[Cell, Mapping[str, Any]]]) -> list[Row]:
    """All figures of a cell in one row."""
    rows: list[Row] = []
    for cell, table in times:
        row = {"cell": cell.id}
        for part, facts in table["parts"].items():
            row |= {f"{part}_{fact}": facts[fact] for fact in FACTS}
        rows.append(row)
    return rows


def _kernel_rows(
    times: Iterable[tuple[Cell, Mapping[str, Any]]], most: int | None
) -> Iterator[Row]:
    """The first kernels of each part, or all."""
    for cell, table in times:
        for part, facts in table["parts"].items():
            for kernel in facts.get("kernels", ())[:most]:
                yield {
                    "cell": cell.id,
                    "part": part,
                    "kernel": kernel["name"],
                    "calls": f"{kernel['calls']:g}",
                    "ms": kernel["ms"],
                    "share": kernel["share"],
                }


def _tell_conditions(timed: TimedCells) -> None:
    """On what the times were taken, how busy it was, and what isn't in the counted operations."""
    if not timed.times:
        return
    tables = [table for _, table in timed.times]
    last = tables[-1]["conditions"]
    loads = [
        load
        for table in tables
        for name in ("load_before", "load_after")
        if (load := table["conditions"][name]) is not None
    ]
    threads = "1 thread" if last["threads"] == 1 else f"{last['threads']} threads"
    load = f", load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    others = max(table["conditions"].get("others", 0.0) for table in tables)
    load += f", other processes on up to {others:.1f} cores"
    peak = f"{last['peak_flops'] / 1e9:.0f} GFLOP/s in a {last['peak_of']}"
    tell(f"machine {timed.machine}: {threads}{load}, at most {peak}")
    uncounted = {
        name for table in tables for part in table["parts"].values() for name in part["uncounted"]
    }
    if uncounted:
        tell(f"not in share_of_peak: {', '.join(sorted(uncounted))}")
    shaky = sum(bool(table["unstable"]) for table in tables)
    if shaky:
        tell(
            f"{shaky} of {len(tables)} unstable (the quartiles are over 10% of the median apart):"
            " is anything else running?"
        )


def _tell_unfinished(asked: Sequence[Prepared], timed: TimedCells) -> None:
    for one in asked:
        rest = [cell.id for cell in timed.unfinished if cell.suite == one.suite.name]
        if rest:
            names, suite = _named(rest), shlex.quote(one.command_name)
            tell(f"not finished and left out: {names}; finish them with: metabench run -s {suite}")


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
