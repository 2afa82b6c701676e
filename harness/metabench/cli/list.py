"""`metabench list`: what is registered, and what became of each plugin."""

from __future__ import annotations

import click

from metabench.cli.choice import NearestChoice
from metabench.cli.output import format_options, print_rows, print_text
from metabench.errors import UsageError
from metabench.plugins import registry
from metabench.registry import Registry
from metabench.rendering import Format, Row, to_json

COLUMNS = {
    "algorithms": ("name", "family", "inference", "reference", "summary", "plugin"),
    "backbones": ("name", "family", "reference", "summary", "plugin"),
    "datasets": ("name", "family", "reference", "summary", "plugin"),
    "suites": ("name", "summary", "plugin"),
    "plugins": ("name", "distribution", "version", "status", "error"),
}


@click.command()
@click.argument("what", type=NearestChoice(list(COLUMNS)), required=False)
@format_options
def command(what: str | None, fmt: Format) -> None:
    """List what is registered: algorithms, backbones, data sets, suites, plugins.

    Without an argument, all of it.
    """
    known = registry()
    if what:
        print_rows(rows_of(known, what), COLUMNS[what], fmt)
    elif fmt == "json":
        everything = {kind: rows_of(known, kind) for kind in COLUMNS}
        print_text(to_json(everything))
    elif fmt == "csv":
        raise UsageError(
            "a CSV holds one table", f"say which: metabench list {'|'.join(COLUMNS)} --format csv"
        )
    else:
        _print_sections(known, fmt)


def rows_of(known: Registry, what: str) -> list[Row]:
    """One row for each thing of a kind, with the columns of `COLUMNS`."""
    if what == "plugins":
        return [{column: getattr(p, column) for column in COLUMNS[what]} for p in known.plugins]
    return [
        {**{column: getattr(entry, column) for column in COLUMNS[what]}, "name": entry.form}
        for entry in getattr(known, what).values()
    ]


def _print_sections(known: Registry, fmt: Format) -> None:
    for number, what in enumerate(COLUMNS):
        heading = f"## {what}\n\n" if fmt == "markdown" else f"{what}\n"
        print_text(heading if number == 0 else f"\n{heading}")
        print_rows(rows_of(known, what), COLUMNS[what], fmt)
