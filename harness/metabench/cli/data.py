"""`metabench data`: which data sets are here; prepare, verify and remove them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metabench.cli.complete import names_of
from metabench.cli.confirm import confirmed
from metabench.cli.options import data_option
from metabench.cli.output import format_options, print_rows
from metabench.cli.sizes import size_text
from metabench.errors import DataCorruptError, DataMissingError, MetabenchError, UsageError
from metabench.plugins import registry
from metabench.rendering import Format, Row, plain

if TYPE_CHECKING:
    from metabench.api.dataset import Dataset

LIST = ("name", "state", "size", "download", "licence", "origin", "path")
VERIFIED = ("name", "state", "error")
FAILED = 1
DATASETS = names_of("dataset")


@click.group()
def command() -> None:
    """List, prepare, verify and remove data sets."""


@command.command("list")
@data_option
@format_options
def list_command(data_dir: Path, fmt: Format) -> None:
    """List the data sets: whether they are here, their size, licence, and where they come from.

    In a table sizes are in words, elsewhere in bytes. `unprepared`: the files are here, and are
    made ready when they are first used; `missing`: they have to be downloaded.
    """
    from metabench.data.catalogue import list_data

    classes = [entry.load() for entry in registry().datasets.values()]
    rows: list[Row] = []
    for row in list_data(classes, data_dir):
        size, download = int(row["bytes"]), int(row["download_bytes"])
        in_words = {"size": size_text(size), "download": size_text(download) if download else None}
        in_bytes = {"size": size, "download": download}
        rows.append({**row, **(in_words if fmt == "table" else in_bytes)})
    print_rows(rows, LIST, fmt)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=DATASETS)
@click.option("--all", "everything", is_flag=True, help="All data sets.")
@data_option
def prepare(names: tuple[str, ...], everything: bool, data_dir: Path) -> None:
    """Download what is missing and make it ready for use.

    One that can't be had doesn't keep the others from being prepared.
    """
    if not names and not everything:
        raise UsageError("which data set?", "name one or more, or say --all")
    errors: list[MetabenchError] = []
    for dataset in _datasets(() if everything else names, data_dir):
        try:
            with _reporting(dataset.name) as report:
                dataset.prepare(report)
        except MetabenchError as problem:
            errors.append(problem)
        else:
            _say(f"{dataset.name} is ready")
    for error in errors[:-1]:
        _say(error.message)
        click.echo(plain(error.hint), err=True)
    if errors:
        raise errors[-1]


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=DATASETS)
@data_option
@format_options
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], data_dir: Path, fmt: Format) -> None:
    """Compute the digests of data sets anew: of those named, or of all that are ready.

    Leaves with exit code 1 if one isn't as it should be.
    """
    rows = [_verified(dataset, bool(names)) for dataset in _datasets(names, data_dir)]
    shown = [row for row in rows if row is not None]
    print_rows(shown, VERIFIED, fmt)
    if any(row["state"] != "intact" for row in shown):
        ctx.exit(FAILED)


@command.command()
@click.argument("name", shell_complete=DATASETS)
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
@data_option
def remove(name: str, yes: bool, data_dir: Path) -> None:
    """Delete what metabench cached or downloaded of a data set; your own files stay."""
    [dataset] = _datasets((name,), data_dir)
    question = f"Delete what metabench cached or downloaded of {name} in {data_dir}?"
    if confirmed(question, yes):
        _say(f"{size_text(dataset.remove())} freed")
    else:
        _say("nothing was deleted")


def _datasets(names: Sequence[str], folder: Path) -> list[Dataset]:
    """The data sets of these names, each once; of all of them where there are none."""
    known = registry()
    entries = [known.get("dataset", name) for name in dict.fromkeys(names)]
    return [entry.load()(folder) for entry in entries or known.datasets.values()]


def _verified(dataset: Dataset, named: bool) -> Row | None:
    """A row on a data set; None for one that isn't ready and that nobody asked for."""
    state, told = "intact", ""
    try:
        if dataset.availability() != "ready" and not named:
            return None
        _say(f"verifying {dataset.name}")
        dataset.verify()
    except DataMissingError as error:
        state, told = "missing", str(error)
    except DataCorruptError as error:
        state, told = "corrupt", str(error)
    return {"name": dataset.name, "state": state, "error": told or None}


def _say(text: str) -> None:
    click.echo(f"metabench: {plain(text)}", err=True)


@contextmanager
def _reporting(name: str) -> Iterator[Callable[[str, float | None], None]]:
    """Show on standard error how far a preparation is: a bar on a terminal, else a line a step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_report()
        return
    told = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), told, BarColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)

        def report(what: str, fraction: float | None) -> None:
            progress.update(
                task,
                description=plain(what),
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
            )

        yield report


def _plain_report() -> Callable[[str, float | None], None]:
    last = ""

    def report(what: str, fraction: float | None) -> None:
        nonlocal last
        if what != last:
            _say(what)
            last = what

    return report
