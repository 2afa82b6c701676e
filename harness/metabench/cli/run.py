"""`metabench run`: train, test and time the cells of a suite, and print its table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from metabench.cli.ending import again, keeping, tell
from metabench.cli.options import chosen_seeds, run_options, suite_option
from metabench.cli.output import format_options, print_rows
from metabench.rendering import Format

if TYPE_CHECKING:
    from metabench.experiment.outcome import Experiment
    from metabench.experiment.prepared import Prepared

FAILED = 1


@click.command("run")
@suite_option()
@run_options
@click.option(
    "-j", "--jobs", type=click.IntRange(1), help="Worker processes. [default: one a free core]"
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Cores of a worker, among which the tasks of a meta-step are shared; changes no digit. "
    "[default: those that no worker has; 1 with --jobs]",
)
@click.option("--failed", is_flag=True, help="Run only the cells that failed before.")
@click.option("-x", "--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option("--fresh", is_flag=True, help="Run finished cells again.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), help="Seconds that a cell may take."
)
@click.option("--dry-run", is_flag=True, help="Print the cells, and train nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    fmt: Format,
    dry_run: bool,
    quiet: bool,
    seeds: int | None,
    seed: tuple[int, ...] | None,
    jobs: int | None,
    **options: Any,
) -> None:
    """Run a suite: train, test and time its cells, then print its table.

    Cells that are finished in the result folder are reused, and interrupted ones go on where they
    stopped. Filters can be repeated, and are shell-style patterns.
    """
    wanted = chosen_seeds(seeds, seed)
    with keeping(ctx, "what is finished is kept"):
        from metabench.experiment.prepared import prepare

        asked = prepare(
            options.pop("suite"),
            seeds=wanted,
            jobs=jobs or "auto",
            strict_plugins=ctx.find_root().params.get("strict_plugins", False),
            **options,
        )
        if dry_run:
            _print_cells(asked, fmt)
        else:
            ctx.exit(_run(ctx, asked, quiet, fmt))


def _run(ctx: click.Context, asked: Prepared, quiet: bool, fmt: Format) -> int:
    """Run, print the table; the exit code."""
    from metabench.cli.leaderboard import print_leaderboard
    from metabench.cli.watch import watching
    from metabench.leaderboard.table import write_leaderboard

    with watching(quiet) as watch:
        experiment = asked.run(watch)
    csv, _ = write_leaderboard(experiment.store, experiment.suite)
    print_leaderboard(experiment.store, experiment.suite, fmt)
    tell(_summary(experiment))
    tell(f"the table is in {csv}")
    outcome = experiment.outcome
    if asked.options.failed_only and not outcome.plan.jobs:
        missing = "; leave --failed away to run what is missing" if outcome.plan.left_out else ""
        tell(f"nothing failed here{missing}")
    if not outcome.failures:
        return 0
    if outcome.stopped:
        tell(f"go on with: {again(ctx)}")
    else:
        tell(f"run only the failed cells with: {again(ctx, '--failed')}")
    return FAILED


def _summary(experiment: Experiment) -> str:
    """How many cells were reused, ran and failed."""
    from metabench.cli.watch import counted

    outcome = experiment.outcome
    plan, failures = outcome.plan, outcome.failures
    parts = [f"{len(plan.finished)} reused", f"{len(outcome.ran)} run"]
    if failures:
        parts.append(f"{len(failures)} failed")
    rest = len(plan.cells) - len(plan.finished) - len(outcome.ran) - len(failures)
    if rest:
        parts.append(f"{rest} not run")
    return f"{counted(len(plan.cells), 'cell')}: {', '.join(parts)}"


def _print_cells(asked: Prepared, fmt: Format) -> None:
    from metabench.cli.watch import counted

    rows = [{"cell": cell.id, "state": state} for cell, state in asked.states()]
    print_rows(rows, ("cell", "state"), fmt)
    finished = sum(row["state"] == "finished" for row in rows)
    tell(f"{counted(len(rows), 'cell')}, {finished} finished; nothing was run")
