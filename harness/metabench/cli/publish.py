"""`metabench publish`: merge the rows of a suite, or of a bundle, with a folder of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli import complete
from metabench.cli.ending import keeping, tell
from metabench.cli.options import data_option, out_option, suite_name
from metabench.cli.output import format_options, print_rows
from metabench.errors import EvidenceError, UsageError
from metabench.rendering import Format, Row

if TYPE_CHECKING:
    from metabench.leaderboard.source import Source
    from metabench.publishing.again import Again
    from metabench.publishing.files import Files
    from metabench.publishing.folder import Publication
    from metabench.publishing.published import PublishedSource, RowLabels
    from metabench.publishing.reproduction import Reproduction
    from metabench.publishing.verify.episodes import DataHere
    from metabench.publishing.verify.report import Finding
    from metabench.store.store import Store

COLUMNS = ("result", "dataset", "protocol", "algorithm", "variant", "backbone", "why")
FOLDER = "leaderboards"
FAILED = 1
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", required=False, type=_FILE)
@click.option(
    "-s", "--suite", shell_complete=complete.suites, help="A suite's name, or the path of its file."
)
@out_option
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"The folder of published tables. [default: ./{FOLDER}, where there is one]",
)
@click.option("--replace", is_flag=True, help="Take new rows where the published ones would stay.")
@click.option(
    "--again",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A result folder in which the suite was run a second time.",
)
@click.option(
    "--rerun",
    "count",
    type=click.IntRange(1),
    help="Run so many cells of BUNDLE again before, which chance picks, and one more seed.",
)
@click.option(
    "--unchecked", is_flag=True, help="Take a BUNDLE of which not everything can be checked here."
)
@click.option(
    "--archive",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table with all that belongs to it into a zip file, ready for a DOI.",
)
@click.option(
    "--creator",
    "creators",
    multiple=True,
    help="Who is named as a creator in the archive. [default: The metabench developers]",
)
@data_option
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path | None,
    suite: str | None,
    out: Path,
    to: Path | None,
    replace: bool,
    again: Path | None,
    count: int | None,
    unchecked: bool,
    archive: Path | None,
    creators: tuple[str, ...],
    data_dir: Path,
    fmt: Format,
) -> None:
    """Merge the rows of a suite, or of a bundle, with a folder of published tables.

    The suite's rows come from the result folder, or those of BUNDLE from that file.
    A published row is replaced by one of newer code, settings or data, and extended by further
    seeds; it stays where the new one was less checked, has fewer seeds, or is the same code with
    other predictions. Nothing is written unless the folder verifies as it will be. One process at a
    time may publish into a folder: there is no lock.
    The table is written as CSV, Markdown and JSON, with the evidence it stands on, a datasheet and
    Croissant metadata. Twice changes nothing. The exit code is 1 where a cell that was run again
    predicted otherwise.
    """
    from metabench.plugins import registry
    from metabench.publishing.again import Again
    from metabench.publishing.folder import publish
    from metabench.publishing.verify.episodes import DataHere
    from metabench.store.store import Store

    if unchecked and bundle is None:
        raise UsageError("--unchecked is for a bundle", "metabench verify says what isn't checked")
    if count is not None and (bundle is None or again is not None):
        raise UsageError("--rerun is for a bundle", "name one, or a second run's folder by --again")
    folder = _folder(to)
    here = DataHere(registry(), data_dir)
    store: Store | None = None
    source: Source
    second: Again | None = None
    if bundle is not None:
        handed_in, suite = _of_bundle(bundle, suite, here, unchecked)
        source = handed_in
        if count is not None:
            with keeping(ctx, "nothing is published"):
                second = Again(known=_run_again(handed_in, here, count))
    else:
        store = Store.open(out, create=False)
        source, suite = _of_folder(store, suite)
    if again is not None:
        second = Again.of(Store.open(again, create=False), suite, store)
    verified = partial(_check_folder, here=here)
    done = publish(source, suite, folder, here, replacing=replace, again=second, check=verified)
    if again is not None and not done.reproductions:
        tell(f"{again}: nothing in it is a second run of a cell that stands in suite {suite}")
    print_rows(list(_rows(done)), COLUMNS, fmt)
    tell(f"{folder}: {len(done.written)} files written, {len(done.removed)} removed")
    if archive is not None:
        _write_archive(archive, folder, suite, here, creators)
    if not done.ok:
        ctx.exit(FAILED)


def _folder(to: Path | None) -> Path:
    """The folder of published tables, which need not be there if it was named."""
    if to is not None:
        return to
    if not Path(FOLDER).is_dir():
        raise UsageError(
            f"there is no folder {FOLDER} here to publish into", "name one with --to; it is made"
        )
    return Path(FOLDER)


def _of_folder(store: Store, suite: str | None) -> tuple[Source, str]:
    from metabench.leaderboard.source import StoreSource

    if not suite:
        raise UsageError("which suite?", "name it with -s, or name a bundle")
    suite = suite_name(suite, store.suites())
    return StoreSource(store), suite


def _run_again(source: PublishedSource, here: DataHere, count: int) -> list[Reproduction]:
    """What came of running cells of a bundle again.

    Raises:
        EvidenceError: some came out otherwise.
    """
    from metabench.cli.watch import watching
    from metabench.engine.numerics import resolve_device
    from metabench.publishing.rerun import Where, rerun

    with watching(quiet=False) as watch:
        where = Where(here.folder, resolve_device("auto"))
        found = rerun(source, here.registry, where, count, watch)
    _refuse(source.files.place, found.report.wrong())
    for finding in found.report.findings:
        tell(f"{finding.check}, {finding.what}: {finding.state} {finding.why}".rstrip())
    return list(found.reproductions.values())


def _refuse(place: str, wrong: Sequence[Finding]) -> None:
    """EvidenceError if something doesn't hold."""
    if not wrong:
        return
    first = wrong[0]
    raise EvidenceError(
        f"{place} isn't published: {first.check}, {first.what}: {first.why}{_more(wrong)}",
        f"metabench verify {place} says all that doesn't hold",
    )


def _more(wrong: Sequence[Finding]) -> str:
    return f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""


def _check_folder(files: Files, here: DataHere) -> None:
    """EvidenceError if a folder as it will be doesn't verify."""
    from metabench.publishing.verify import verify_files

    wrong = verify_files(files, here.registry, here.folder).wrong()
    if wrong:
        first = wrong[0]
        raise EvidenceError(
            f"nothing is published: {files.place} would not verify: {first.check}, {first.what}:"
            f" {first.why}{_more(wrong)}",
            "what was wrong before, metabench verify says; --replace takes a row's new evidence",
        )


def _of_bundle(
    path: Path, suite: str | None, here: DataHere, unchecked: bool
) -> tuple[PublishedSource, str]:
    """A bundle as a source of rows, if it holds.

    Args:
        unchecked: take it also where something can't be checked here.
    """
    from metabench.publishing.archive import open_bundle
    from metabench.publishing.published import PublishedSource
    from metabench.publishing.verify import verify_files

    files = open_bundle(path)
    report = verify_files(files, here.registry, here.folder)
    _refuse(path.name, report.wrong())
    left = [finding for finding in report.findings if finding.state == "not checked"]
    for finding in left:
        tell(f"{finding.check}, {finding.what}: {finding.state}: {finding.why}")
    if left and not unchecked:
        raise EvidenceError(
            f"{path.name} isn't published: not all of it can be checked here",
            "get what is missing (metabench data prepare), or take it as it is with --unchecked",
        )
    source = PublishedSource.read(files)
    [name] = source.tables
    if suite not in (None, name):
        raise UsageError(f"{path.name} is of suite {name!r}, not {suite!r}", "leave -s away")
    return source, name


def _rows(done: Publication) -> Iterator[Row]:
    """What became of each row, and what came of running some again."""
    for change in done.changes:
        yield _row(change.what, change.labels, change.reason)
    for labels, found in done.reproductions:
        yield from _again_rows(labels, found)


def _again_rows(labels: RowLabels, found: tuple[Reproduction, ...]) -> Iterator[Row]:
    wrong = [one for one in found if not one.holds]
    cells = "1 cell" if len(found) == 1 else f"{len(found)} cells"
    if not wrong:
        yield _row("reproduced", labels, f"{cells} run again")
    for one in wrong:
        share = f"{1 - one.agreement:.2%} of the queries answered otherwise"
        if one.agreement == 1:
            share = "the same answers with other probabilities, or for other disjoint episodes"
        device = "the same kind of device" if one.same_device else "another kind of device"
        score = f"score {one.difference:+.4f}"
        yield _row("differs", labels, f"cell {one.key[:8]} on {device}: {share}, {score}")


def _row(result: str, labels: RowLabels, why: str) -> Row:
    known = labels.model_dump(include=set(COLUMNS))
    return {"result": result, **known, "why": why or None}


def _write_archive(
    path: Path, folder: Path, suite: str, here: DataHere, creators: tuple[str, ...]
) -> None:
    from metabench.publishing.deposit import deposit
    from metabench.publishing.files import FolderFiles
    from metabench.store.files import replace_bytes
    from metabench.store.machine import unique_name

    data = deposit(FolderFiles(folder), suite, here, creators)
    replace_bytes(path.absolute(), data, unique_name())
    tell(f"{path}: {len(data)} bytes")
