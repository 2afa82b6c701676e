"""`metabench leaderboard`: the table of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli import complete
from metabench.cli.ending import tell
from metabench.cli.options import out_option, suite_name
from metabench.cli.output import format_options, print_rows, print_text
from metabench.errors import UsageError
from metabench.rendering import Format, plain

if TYPE_CHECKING:
    from metabench.leaderboard.rows import TableRow
    from metabench.store.store import Store


@click.command()
@click.option(
    "-s",
    "--suite",
    required=True,
    shell_complete=complete.suites,
    help="A suite's name, or the path of its file.",
)
@click.option(
    "--diagram",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the critical-difference diagram into a file, .svg or .png (six data sets or more).",
)
@out_option
@format_options
def command(suite: str, out: Path, diagram: Path | None, fmt: Format) -> None:
    """Print the table of a suite from the results in a folder.

    Scores are computed anew from the episodes of each cell. The CSV and the JSON have all columns.
    """
    from metabench.store.store import Store

    store = Store.open(out, create=False)
    suite = suite_name(suite, store.suites())
    if diagram is not None:
        _draw(store, suite, diagram)
    print_leaderboard(store, suite, fmt)


def _draw(store: Store, suite: str, path: Path) -> None:
    """Draw the diagram of each inference mode; that of a second one gets its name into the file's.

    Raises:
        UsageError: another kind of file, too few data sets, or no library that draws.
    """
    from metabench.leaderboard.across import MODES, across
    from metabench.leaderboard.rows import table_rows
    from metabench.leaderboard.source import StoreSource
    from metabench.report.critical_difference import critical_difference
    from metabench.stats.across import FEWEST_DATASETS

    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("svg", "png"):
        raise UsageError(f"{path}: a diagram is an SVG or a PNG", "--diagram ranks.svg")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for the diagram", "make it first")
    rows = table_rows(StoreSource(store), suite)
    found = [(mode, a.found) for mode in MODES if (a := across(rows, mode)) is not None]
    if not found:
        raise UsageError(
            f"suite {suite} has no {FEWEST_DATASETS} data sets on which the same methods finished",
            "the diagram compares methods over data sets; protocols of one data set are not any",
        )
    for number, (mode, methods) in enumerate(found):
        target = path.with_stem(f"{path.stem}-{mode}") if number else path
        target.write_bytes(critical_difference(methods, "svg" if kind == "svg" else "png"))
        tell(f"the critical-difference diagram, {mode}, is in {target}")


def print_leaderboard(store: Store, suite: str, fmt: Format) -> None:
    """Print a suite's table on standard output.

    Raises:
        UnknownNameError: the suite was never run into this result folder.
        StoreError: something can't be read, or doesn't fit together.
    """
    from metabench.leaderboard.rows import COLUMNS, table_rows
    from metabench.leaderboard.source import StoreSource
    from metabench.leaderboard.table import leaderboard_markdown

    source = StoreSource(store)
    rows = table_rows(source, suite)
    if fmt == "table":
        _print_sections(rows)
    elif fmt == "markdown":
        print_text(leaderboard_markdown(source, suite, rows))
    else:
        print_rows([row.to_dict() for row in rows], COLUMNS, fmt)


def _print_sections(rows: list[TableRow]) -> None:
    from metabench.leaderboard.across import across_sections
    from metabench.leaderboard.sections import sections

    for number, section in enumerate([*sections(rows), *across_sections(rows)]):
        head = [section.title, section.facts, *filter(None, [section.note])]
        gap = "\n" if number else ""
        print_text(gap + "".join(f"{plain(line)}\n" for line in head) + "\n")
        print_rows(section.rows, section.columns)
