"""`metabench compare`: two rows of a table, two folders, or a table and what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from metabench.cli import complete
from metabench.cli.options import out_option
from metabench.cli.output import format_options, print_rows
from metabench.errors import MetabenchError, StoreError, UnknownNameError, UsageError
from metabench.rendering import Format, plain
from metabench.store import with_home

if TYPE_CHECKING:
    from metabench.cli.compare_page import Kind
    from metabench.leaderboard.compare import Comparisons, Only
    from metabench.leaderboard.source import Source
    from metabench.store.store import Store

REGRESSION = 1


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
@click.option(
    "-a",
    "--algorithm",
    "algorithms",
    multiple=True,
    shell_complete=complete.names_of("algorithm"),
    help="Only these rows of two folders or versions: a name, or name/variant.",
)
@click.option(
    "-b",
    "--backbone",
    "backbones",
    multiple=True,
    shell_complete=complete.names_of("backbone"),
    help="Only rows with these: a name or label.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    shell_complete=complete.names_of("dataset"),
    help="Only these: a name or label.",
)
@click.option("-p", "--protocol", "protocols", multiple=True, help="Only these: such as 5w1s.")
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
    corrected by Holm for all pairs of that table, whatever is asked for. Under 3 seeds the
    finding is about these checkpoints only.

    Two folders are compared row by row, paired over seeds and episodes: same predictions, or how
    far apart, with p corrected for the rows that changed. --versions does the same within one
    result folder, where cells stay when code changes (until `metabench clean`): each row against
    the last finished one before it that differs from it in code, perhaps in numerics, and in
    nothing else.

    --fail-on-regression: exit code 1 if a row is significantly worse (corrected p < .05), under
    3 seeds too: the same training run under other code came out worse. So does a row that failed
    and was finished before. Same predictions never do. Exit code 2 if nothing could be compared.
    """  # noqa: D301 (click looks for the character, not for a backslash and a b)
    from metabench.leaderboard.compare import Only

    only = Only(algorithms, backbones, datasets, protocols)
    kind, name, found = _found(first, second, versions, out, suite, only)
    _print(kind, name, found, fmt)
    if fail_on_regression:
        ctx.exit(_exit_code(kind, found))


class _Place(NamedTuple):
    """Where rows are read from: a result folder, or published tables.

    Attributes:
        path: as it was typed.
        suites: those there are.
        store: None for published tables.
    """

    path: Path
    suites: list[str]
    store: Store | None

    @classmethod
    def open(cls, path: Path) -> _Place:
        """Raises StoreError for a folder that holds neither, or can't be read."""
        from metabench.publishing.files import FolderFiles
        from metabench.publishing.published import suites_in
        from metabench.store.store import MARK, Store

        if (path / MARK).exists() or not path.is_dir():
            store = Store.open(path, create=False)
            return cls(path, store.suites(), store)
        suites = suites_in(FolderFiles(path))
        if not suites:
            raise StoreError(
                f"there are neither results nor published tables in {path}",
                "name a result folder, or one that metabench publish wrote",
            )
        return cls(path, suites, None)

    def source(self, suite: str) -> Source:
        """What has the rows of a suite."""
        from metabench.leaderboard.source import StoreSource
        from metabench.publishing.files import FolderFiles
        from metabench.publishing.published import PublishedSource

        if self.store is not None:
            return StoreSource(self.store)
        return PublishedSource.read(FolderFiles(self.path), [suite])


def _found(
    first: str | None, second: str | None, versions: bool, out: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    """What is compared, of which suite, and what came of it."""
    from metabench.cli.compare_page import Kind
    from metabench.leaderboard.changes import compare_versions

    if versions:
        if first is not None:
            raise UsageError("--versions compares a table with itself", f"say -a {first}")
        place = _Place.open(out)
        name = _suite(suite, [place])
        if place.store is None:
            raise UsageError(f"{out} has published tables, which keep one version", "compare two")
        kind = Kind("versions", "new", "old", (str(out), "earlier code"))
        return kind, name, compare_versions(place.store, name, only)
    if first is None or second is None:
        raise UsageError(
            "there is one thing to compare" if first else "there is nothing to compare",
            "name two rows, such as protonet maml, or two folders, or say --versions",
        )
    folders = [with_home(text) for text in (first, second)]
    if not all(folder.is_dir() for folder in folders):
        return _two_rows(first, second, out, suite, only)
    if _are_rows(first, second, out, suite, only):
        click.echo(
            f"metabench: {plain(first)} and {plain(second)} are rows of {plain(str(out))}, and"
            f" folders too: rows are compared (write ./{plain(first)} for the folder)",
            err=True,
        )
        return _two_rows(first, second, out, suite, only)
    return _two_folders(folders[0], folders[1], suite, only)


def _two_rows(
    first: str, second: str, out: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    from metabench.cli.compare_page import ROWS
    from metabench.leaderboard.compare import compare_rows

    if only.algorithms:
        raise UsageError("-a is for two folders or --versions", "two rows are named already")
    place = _Place.open(out)
    name = _suite(suite, [place])
    try:
        found = compare_rows(place.source(name), name, first, second, only)
    except UnknownNameError as error:
        one = next((text for text in (first, second) if with_home(text).is_dir()), None)
        if one is None:
            raise
        raise UnknownNameError(
            error.message, f"{one} is a folder: name two folders, or two rows"
        ) from error
    return ROWS._replace(places=(first, second)), name, found


def _two_folders(
    old: Path, new: Path, suite: str | None, only: Only
) -> tuple[Kind, str, Comparisons]:
    from metabench.cli.compare_page import Kind
    from metabench.leaderboard.changes import Side, compare_sides

    places = [_Place.open(old), _Place.open(new)]
    name = _suite(suite, places)
    sides = [Side.of(place.source(name), name, only) for place in places]
    kind = Kind("folders", "new", "old", (str(new), str(old)))
    return kind, name, compare_sides(*sides)


def _are_rows(first: str, second: str, out: Path, suite: str | None, only: Only) -> bool:
    """Whether both are rows of the result folder's table; not if there is none."""
    from metabench.leaderboard.compare import row_called
    from metabench.leaderboard.rows import table_rows

    try:
        place = _Place.open(out)
        name = _suite(suite, [place])
        rows = only.of(table_rows(place.source(name), name))
        return row_called(rows, first) != row_called(rows, second)
    except MetabenchError:
        return False


def _suite(asked: str | None, places: Sequence[_Place]) -> str:
    """The suite that is meant: what was asked for, or the only one that all of them have."""
    from metabench.runner.suite import is_path

    shared = [name for name in places[0].suites if all(name in p.suites for p in places)]
    where = " and ".join(str(place.path) for place in places)
    if asked is None:
        if len(shared) != 1:
            listed = f"there are {', '.join(shared)}" if shared else "they share none"
            raise UsageError(
                f"which suite of {where} is meant?" if shared else f"no suite is in {where}",
                f"say it with -s: {listed}" if shared else "run one suite into it, or into both",
            )
        return shared[0]
    name = Path(asked).stem if is_path(asked) and asked not in shared else asked
    if name not in shared:
        hint = f"there are {', '.join(shared)}" if shared else "there is none"
        raise UnknownNameError(f"there are no results of suite {name!r} in {where}", hint)
    return name


def _print(kind: Kind, suite: str, found: Comparisons, fmt: Format) -> None:
    from metabench.cli.compare_page import comparison_page, comparison_rows
    from metabench.cli.page import print_page

    if fmt == "csv":
        rows = comparison_rows(kind, found)
        print_rows(rows, list(rows[0]) if rows else [], fmt)
    else:
        print_page(comparison_page(kind, suite, found), fmt)


def _exit_code(kind: Kind, found: Comparisons) -> int:
    """What a script is told.

    Raises:
        StoreError: nothing could be compared, and nothing is known to have failed.
    """
    worse, broken = len(found.regressions), 0
    if kind.name != "rows":
        broken = sum(
            pair.first.status not in ("ok", "missing") and pair.second.status == "ok"
            for pair in found.found
        )
    if worse or broken:
        told = [f"{worse} significantly worse"] if worse else []
        told += [f"{broken} failed that were finished before"] if broken else []
        click.echo(f"metabench: rows: {', '.join(told)}", err=True)
        return REGRESSION
    if all(pair.found is None for pair in found.found):
        raise StoreError("no rows could be compared", "so nobody knows whether they are worse")
    return 0
