"""Printing results: one function for every verb, and the options that choose the format."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from metabench.cli.choice import NearestChoice
from metabench.rendering import FORMATS, Format, Row, cell, numeric_columns, render

if TYPE_CHECKING:
    from rich.table import Table


def format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--format` and `--json` to a verb; it is handed the choice as its argument `fmt`."""

    @click.option(
        "--format",
        "fmt",
        type=NearestChoice(FORMATS),
        default="table",
        show_default=True,
        help="How to print the result.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
    @functools.wraps(function)
    def verb(*args: Any, fmt: Format, as_json: bool, **options: Any) -> Any:
        return function(*args, fmt="json" if as_json else fmt, **options)

    return verb


def print_rows(rows: Sequence[Row], columns: Sequence[str], fmt: Format = "table") -> None:
    """Print rows on standard output.

    A table on a terminal folds its cells to the terminal's width; anywhere else it is as wide as
    it needs to be, and the same text whatever the environment.
    """
    if fmt == "table" and sys.stdout.isatty():
        from rich.console import Console

        Console(file=sys.stdout).print(_folding_table(rows, columns))
    else:
        print_text(render(rows, columns, fmt))


def print_text(text: str) -> None:
    r"""Print text that is already safe on standard output: UTF-8, `\n`, nothing added."""
    click.echo(text.encode("utf-8", "replace"), nl=False)


def _folding_table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, numeric in zip(columns, numeric_columns(rows, columns), strict=True):
        table.add_column(
            Text(column), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    for row in rows:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    return table
