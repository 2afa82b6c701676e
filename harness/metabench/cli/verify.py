"""`metabench verify`: what holds of a bundle or a folder of published tables, and what doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli.ending import keeping, tell
from metabench.cli.options import data_option, device_option
from metabench.cli.output import format_options, print_rows
from metabench.rendering import Format

if TYPE_CHECKING:
    from metabench.publishing.files import Files
    from metabench.publishing.verify import Report

WRONG = 1


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--rerun",
    "count",
    type=click.IntRange(1),
    help="Run so many cells again, which chance picks, and one more training seed of a row.",
)
@data_option
@device_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    help="Seconds that a cell may take with --rerun, in a process of its own.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    place: Path,
    count: int | None,
    data_dir: Path,
    device: str,
    timeout: float | None,
    quiet: bool,
    fmt: Format,
) -> None:
    """Check a bundle or a folder of published tables: what holds and what doesn't.

    Every number is recomputed from the predictions beside it, and these are compared with the
    episodes that their protocol draws. Nothing of it is executed. The exit code is 1 where
    something doesn't hold. That somebody didn't make up the predictions shows only with --rerun,
    which trains with the plugins that are installed here.
    """
    from metabench.plugins import registry
    from metabench.publishing.verify import COLUMNS, verify_files

    files = _opened(place)
    report = verify_files(files, registry(), data_dir)
    if count is not None:
        with keeping(ctx, "nothing is kept"):
            _rerun(files, report, count, data_dir, device, timeout, quiet)
    rows = report.summary() if fmt == "table" else report.to_json()
    print_rows(rows, COLUMNS, fmt)
    tell(_summary(report, count is not None))
    if not report.ok:
        ctx.exit(WRONG)


def _opened(place: Path) -> Files:
    from metabench.publishing.archive import open_bundle
    from metabench.publishing.files import FolderFiles

    return FolderFiles(place) if place.is_dir() else open_bundle(place)


def _rerun(
    files: Files,
    report: Report,
    count: int,
    data_dir: Path,
    device: str,
    timeout: float | None,
    quiet: bool,
) -> None:
    """Run cells again, and add what came of it to the report."""
    from metabench.cli.watch import watching
    from metabench.engine.numerics import resolve_device
    from metabench.plugins import registry
    from metabench.publishing.published import PublishedSource
    from metabench.publishing.rerun import Where, rerun

    if not report.ok:
        tell("nothing is run again, as something doesn't hold already")
        return
    where = Where(data_dir, resolve_device(device), timeout)
    with watching(quiet) as watch:
        found = rerun(PublishedSource.read(files), registry(), where, count, watch)
    report.findings += found.report.findings


def _summary(report: Report, ran: bool) -> str:
    """How much holds, and what that means."""
    states = [finding.state for finding in report.findings]
    parts = [f"{states.count('holds')} hold"]
    if open_ := states.count("not checked"):
        parts.append(f"{open_} could not be checked here")
    if wrong := states.count("does not hold"):
        parts.append(f"{wrong} do not")
    told = f"{len(states)} checks: {', '.join(parts)}"
    if report.ok and not ran:
        told += "; whether the predictions were made up only --rerun can tell"
    return told
