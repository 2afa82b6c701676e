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
    "backbones": ("name", "argument", "family", "reference", "summary", "plugin"),
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
    if what and fmt in {"json", "csv"}:
        print_rows(rows_of(known, what), COLUMNS[what], fmt)
    elif what:
        _print_table(known, what, fmt)
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
    """One row for each thing of a kind, with the columns of `COLUMNS`.

    A name is one that every command takes; `argument` is the hyper-parameter that can stand behind
    it, as in `torchvision:resnet18`.
    """
    things = known.plugins if what == "plugins" else getattr(known, what).values()
    return [{column: getattr(thing, column) for column in COLUMNS[what]} for thing in things]


def _print_table(known: Registry, what: str, fmt: Format) -> None:
    """The same for people: a name that takes an argument shows where it goes."""
    rows = rows_of(known, what)
    if what == "backbones":
        forms = [entry.form for entry in known.backbones.values()]
        rows = [{**row, "name": form} for row, form in zip(rows, forms, strict=True)]
    print_rows(rows, [column for column in COLUMNS[what] if column != "argument"], fmt)


def _print_sections(known: Registry, fmt: Format) -> None:
    for number, what in enumerate(COLUMNS):
        heading = f"## {what}\n\n" if fmt == "markdown" else f"{what}\n"
        print_text(heading if number == 0 else f"\n{heading}")
        _print_table(known, what, fmt)
