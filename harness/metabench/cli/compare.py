"""`metabench compare`: two rows of a table, two folders, or a table and what it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli import complete
from metabench.cli.compare_places import Place, which_suite
from metabench.cli.options import out_option, row_options
from metabench.cli.output import format_options, print_rows
from metabench.errors import EvidenceError, MetabenchError, StoreError, UnknownNameError, UsageError
from metabench.rendering import Format, plain
from metabench.store import with_home

if TYPE_CHECKING:
    from metabench.cli.compare_words import Kind
    from metabench.leaderboard.compare import Comparisons
    from metabench.leaderboard.names import Only


@click.command()
@click.argument("first", metavar="[A", required=False, shell_complete=complete.rows)
@click.argument("second", metavar="B]", required=False, shell_complete=complete.rows)
@click.option(
    "--versions", is_flag=True, help="Compare the table with what it was under earlier code."
)
@click.option(
    "-s",
    "--suite",
    shell_complete=complete.suites,
    help="A suite's name, or the path of its file.  [default: the only one there is]",
)
@row_options("Only these rows of two folders or versions: a name, or name/variant.")
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Leave with exit code 1 if A, or the new one, is significantly worse.",
)
@out_option
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    first: str | None,
    second: str | None,
    versions: bool,
    suite: str | None,
    algorithms: tuple[str, ...],
    backbones: tuple[str, ...],
    datasets: tuple[str, ...],
    protocols: tuple[str, ...],
    fail_on_regression: bool,
    out: Path,
    fmt: Format,
) -> None:
    """Compare two rows of a table, two result folders, or a table with what it was.

    \b
    metabench compare protonet maml            A - B, in each table where both stand
    metabench compare maml maml/first-order    with variants; alone, a name means none
    metabench compare protonet nearest-centroid@identity     the row of a backbone
    metabench compare old-results new-results  two folders: new - old, row by row
    metabench compare leaderboards new-results published tables are such a folder too
    metabench compare --versions -a maml       did my change alter the numbers?

    Two rows are compared over the training seeds and test episodes that both have. p is
    corrected by Holm for all pairs of that table that have 3 seeds or more in common, whatever is
    asked for. Under 3 seeds in common the finding is about these checkpoints only.

    Two folders are compared row by row, paired over the seeds that both have and over episodes:
    same predictions (probabilities and disjoint episodes too), or how far apart, with p corrected
    for the rows whose labels changed. --versions does the same within one result folder, where
    cells stay when code changes (until `metabench clean`): each row against the last finished one
    before it that differs from it in code, perhaps in numerics, and in nothing else. Of several
    versions one on the same device is meant, then one with most of the row's seeds, then the last;
    the page says when it ran.

    --fail-on-regression: exit code 1 if a row is significantly worse (corrected p < .05), or
    failed and was finished before. In folders and versions this holds under 3 seeds too: the same
    training run under other code came out worse. Same predictions never are worse, nor is a row
    that had failed before. Exit code 2 if a row couldn't be judged: it is gone, missing or not
    comparable, or two rows have under 3 seeds in common.
    """  # noqa: D301 (click looks for the character, not for a backslash and a b)
    from metabench.leaderboard.names import Only

    only = Only(algorithms, backbones, datasets, protocols)
    try:
        kind, name, found = _found(first, second, versions, out, suite, only)
    except EvidenceError as error:  # whose exit code is that of a regression here
        raise StoreError(error.message, error.hint) from error
    _print(kind, name, found, fmt)
    if fail_on_regression:
        from metabench.cli.compare_gate import exit_code

        ctx.exit(exit_code(kind, found))


def _found(
    first: str | None, second: str | None, versions: bool, out: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    """What is compared, of which suite, and what came of it."""
    if versions:
        if first is not None:
            raise UsageError("--versions compares a table with itself", f"say -a {first}")
        return _versions(out, suite, only)
    if first is None or second is None:
        raise UsageError(
            "there is one thing to compare" if first else "there is nothing to compare",
            "name two rows, such as protonet maml, or two folders, or say --versions",
        )
    if not first.strip() or not second.strip():
        raise UsageError("one of the names is empty", "name two rows, or two folders")
    folders = [with_home(text) for text in (first, second)]
    there = [folder.is_dir() for folder in folders]
    if any(there) and not _are_rows(first, second, out, suite, only):
        if not all(there):
            missing, other = (first, second) if there[1] else (second, first)
            raise UnknownNameError(
                f"there is no folder {missing}",
                f"{other} is a folder: name two folders, or two rows",
            )
        return _two_folders(folders[0], folders[1], suite, only)
    if all(there):
        click.echo(
            f"metabench: {plain(first)} and {plain(second)} are rows of {plain(str(out))}, and"
            f" folders too: rows are compared (write ./{plain(first)} for the folder)",
            err=True,
        )
    return _two_rows(first, second, out, suite, only)


def _versions(out: Path, suite: str | None, only: Only) -> tuple[Kind, str, Comparisons]:
    from metabench.cli.compare_words import Kind
    from metabench.leaderboard.changes import compare_versions

    place = Place.open(out)
    name = which_suite(suite, [place])
    if place.store is None:
        raise UsageError(f"{out} has published tables, which keep one version", "compare two")
    kind = Kind("versions", "new", "old", (str(out), "earlier code"))
    return kind, name, compare_versions(place.store, name, only)


def _two_rows(
    first: str, second: str, out: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    from metabench.cli.compare_words import ROWS
    from metabench.leaderboard.compare import compare_rows
    from metabench.leaderboard.rows import table_rows

    if only.algorithms:
        raise UsageError("-a is for two folders or --versions", "two rows are named already")
    paths = [text for text in (first, second) if "/" in text]  # or a name with a variant
    try:
        place = Place.open(out)
    except StoreError as error:
        if not paths:
            raise
        raise StoreError(f"there is no folder {paths[0]}", error.message) from error
    name = which_suite(suite, [place])
    try:
        found = compare_rows(table_rows(place.source(name), name), first, second, only)
    except UnknownNameError as error:
        told = f"{error.message}, and no folder {' or '.join(paths)}" if paths else error.message
        raise UnknownNameError(told, error.hint) from error
    return ROWS._replace(places=(first, second)), name, found


def _two_folders(
    old: Path, new: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    from metabench.cli.compare_words import Kind
    from metabench.leaderboard.changes import Side, compare_sides

    if old.samefile(new):
        raise UsageError(f"{old} and {new} are the same folder", "name two")
    places = [Place.open(old), Place.open(new)]
    name = which_suite(suite, places)
    before, now = (Side.of(place.source(name), name) for place in places)
    kind = Kind("folders", "new", "old", (str(new), str(old)))
    return kind, name, compare_sides(before, now, only)


def _are_rows(first: str, second: str, out: Path, suite: str | None, only: Only) -> bool:
    """Whether both are rows of the result folder's table; not if there is none."""
    from metabench.leaderboard.names import RowName, row_called

    try:
        place = Place.open(out)
        name = which_suite(suite, [place])
        members = place.source(name).members(name)
        names = [RowName.of(member) for member in members if member in only]
        return row_called(names, first) != row_called(names, second)
    except MetabenchError:
        return False


def _print(kind: Kind, suite: str, found: Comparisons, fmt: Format) -> None:
    from metabench.cli.compare_page import comparison_columns, comparison_page, comparison_rows
    from metabench.cli.page import print_page

    if fmt == "csv":
        print_rows(comparison_rows(kind, found), comparison_columns(kind), fmt)
    else:
        print_page(comparison_page(kind, suite, found), fmt)
