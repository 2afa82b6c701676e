"""`metabench leaderboard`: the table of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli import complete
from metabench.cli.options import out_option
from metabench.cli.output import format_options, print_rows, print_text
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
@out_option
@format_options
def command(suite: str, out: Path, fmt: Format) -> None:
    """Print the table of a suite from the results in a folder.

    Scores are computed anew from the episodes of each cell. The CSV and the JSON have all columns.
    """
    from metabench.runner.suite import is_path
    from metabench.store.store import Store

    store = Store.open(out, create=False)
    if is_path(suite) and suite not in store.suites():
        suite = Path(suite).stem
    print_leaderboard(store, suite, fmt)


def print_leaderboard(store: Store, suite: str, fmt: Format) -> None:
    """Print a suite's table on standard output.

    Raises:
        UnknownNameError: the suite was never run into this result folder.
        StoreError: something can't be read, or doesn't fit together.
    """
    from metabench.leaderboard.rows import COLUMNS, table_rows
    from metabench.leaderboard.table import leaderboard_markdown

    rows = table_rows(store, suite)
    if fmt == "table":
        _print_sections(rows)
    elif fmt == "markdown":
        print_text(leaderboard_markdown(store, suite, rows))
    else:
        print_rows([row.to_dict() for row in rows], COLUMNS, fmt)


def _print_sections(rows: list[TableRow]) -> None:
    from metabench.leaderboard.sections import sections

    for number, section in enumerate(sections(rows)):
        head = [section.title, section.facts, *filter(None, [section.note])]
        gap = "\n" if number else ""
        print_text(gap + "".join(f"{plain(line)}\n" for line in head) + "\n")
        print_rows(section.rows, section.columns)
