"""`metabench check`: whether a plugin does what it has to, and what it says."""

from __future__ import annotations

from pathlib import Path

import click

from metabench.cli import complete
from metabench.cli.options import data_option
from metabench.cli.output import format_options, print_rows, print_text
from metabench.rendering import Format, plain

FAILED = 1
COLUMNS = (
    *("plugin", "check", "status", "seconds", "remark"),
    *("expected", "happened", "look_at"),
)


@click.command()
@click.argument("target", shell_complete=complete.anything)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A hyper-parameter of an algorithm or a backbone. Can be repeated.",
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check. Can be repeated.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=15.0,
    show_default=True,
    help="Seconds that one check may take.",
)
@data_option
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    target: str,
    settings: tuple[str, ...],
    only: tuple[str, ...],
    timeout: float,
    data_dir: Path,
    fmt: Format,
) -> None:
    """Check a plugin: what it states and predicts, how it trains, what can be saved of it.

    \b
    metabench check maml                a registered name; KIND:NAME where two kinds share it
    metabench check ./my-project        a project, installed or not
    metabench check mine.py             all plugin classes in a file
    metabench check package.module      or in a module
    metabench check my-suite.toml       a suite
    metabench check maml --set batch_norm=batch    with other hyper-parameters

    The checks run in a process of their own; a plugin that hangs or dies fails one of them. Exit
    code 1 if any fails.
    """  # noqa: D301 (click looks for the character, not for a backslash and a b)
    from metabench.testing.conformance.running import Asked, run_checks

    results = []
    asked = Asked(target, data_dir, only, settings=settings)
    for result in run_checks(asked, timeout):
        results.append(result)
        if fmt == "table":
            print_text(_told(vars(result)))
    failed = sum(result.status == "failed" for result in results)
    if fmt == "table":
        skipped = sum(result.status == "skipped" for result in results)
        passed = len(results) - failed - skipped
        seconds = sum(result.seconds for result in results)
        print_text(f"{passed} passed, {failed} failed, {skipped} skipped in {seconds:.1f} s\n")
    else:
        print_rows([vars(result) for result in results], COLUMNS, fmt)
    ctx.exit(FAILED if failed else 0)


def _told(row: dict[str, object]) -> str:
    """One line; of a failure what was expected, what happened, and where to look."""
    remark = f" ({row['remark']})" if row["remark"] else ""
    line = plain(f"{row['plugin']}: {row['check']}{remark}")
    lines = [f"{row['status']:<8}{line}"]
    if row["status"] == "failed":
        lines += [f"        expected: {plain(str(row['expected']))}"]
        lines += [f"        happened: {plain(str(row['happened']))}"]
        if row["look_at"]:
            lines += [f"        look at:  {plain(str(row['look_at']))}"]
    return "".join(f"{line}\n" for line in lines)
