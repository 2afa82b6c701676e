"""Printing results: one function for every verb, and the options that choose the format."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from metabench.cli.choice import NearestChoice
from metabench.rendering import FORMATS, Format, Row, cell, numeric_columns, render

if TYPE_CHECKING:
    from rich.table import Table


GAP = 2
"""Blanks between two columns on a terminal."""
LONGEST_NAME = 32
"""Text in longer cells is folded where room is short; anything shorter stands whole, on one line
or, where it is several words, with each of its words whole."""
NARROWEST = 20
"""Folded text gets this many characters a line, or it can't be read."""
# fmt: off
DISPENSABLE = (
    "trust", "nll", "worst_episodes", "worst_class", "budget", "train_s", "predict_ms",
    "adapt_ms", "ece", "ci95_items", "ci95_classes", "seeds", "seed_std", "device",  # leaderboards
    "plugin", "path",  # lists
)
# fmt: on
"""What is left out first where a terminal is too narrow; after these, from the right."""


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

    A table on a terminal is made to fit its width: long text is folded, and columns that don't fit
    are left out, which the last line says. Anywhere else it is as wide as it needs to be, and the
    same text whatever the environment.
    """
    if fmt == "table" and sys.stdout.isatty():
        _print_fitted(rows, columns)
    else:
        print_text(render(rows, columns, fmt))


def print_text(text: str) -> None:
    r"""Print text that is already safe on standard output: UTF-8, `\n`, nothing added."""
    click.echo(text.encode("utf-8", "replace"), nl=False)


def _print_fitted(rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout)
    widths = _fitted_widths(rows, columns, console.width)
    console.print(_folding_table(rows, widths))
    if left_out := len(columns) - len(widths):
        what = "1 column" if left_out == 1 else f"{left_out} columns"
        # Not CSV: pages and lists of several tables have none.
        console.print(Text(f"{what} left out: --format json has all"))


def _folding_table(rows: Sequence[Row], widths: Mapping[str, int]) -> Table:
    """The columns of `widths`, as wide as it says."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # One blank of the gap is the padding, the other the box's divider.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for column, numeric in zip(widths, numeric_columns(rows, list(widths)), strict=True):
        table.add_column(
            Text(column),
            justify="right" if numeric else "left",
            width=widths[column],
            overflow="fold",
            no_wrap=numeric,
        )
    for row in rows:
        table.add_row(*(Text(cell(row.get(column))) for column in widths))
    return table


def _fitted_widths(rows: Sequence[Row], columns: Sequence[str], room: int) -> dict[str, int]:
    """The columns for which there is room, in their order, and how wide they are.

    The first column always stays: it says what a row is about.
    """
    cells = {column: [cell(row.get(column)) for row in rows] for column in columns}
    fewest = {column: _least_width(column, cells[column]) for column in columns}
    widest = {column: max(map(_width, [column, *cells[column]])) for column in columns}
    going = [column for column in DISPENSABLE if column in columns[1:]]
    going += [column for column in reversed(columns[1:]) if column not in going]
    widths = dict(fewest)
    while len(widths) > 1 and _total(widths) > room:
        del widths[going.pop(0)]
    spare = room - _total(widths)
    while spare > 0 and (folded := [name for name in widths if widths[name] < widest[name]]):
        # Names first, then whatever would take the most lines.
        short = [name for name in folded if widest[name] <= LONGEST_NAME]
        column = max(short or folded, key=lambda name: widest[name] / widths[name])
        widths[column] += 1
        spare -= 1
    return widths if spare >= 0 else dict.fromkeys(widths, room)


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _least_width(column: str, cells: Sequence[str]) -> int:
    """The width of the longest word; of text that is too long for a name, enough to read it."""
    needed = [_width(column)]
    for text in cells:
        words = max(map(_width, text.split()), default=0)
        needed.append(words if _width(text) <= LONGEST_NAME else min(words, NARROWEST))
    folds = any(_width(text) > LONGEST_NAME for text in cells)
    return max([*needed, NARROWEST] if folds else needed)


def _width(text: str) -> int:
    """In columns of a terminal, of which some characters take two and some none."""
    from rich.cells import cell_len

    return cell_len(text)
