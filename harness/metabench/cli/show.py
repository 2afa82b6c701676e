"""`metabench show`: all that is known of something registered, or of a cell."""

from __future__ import annotations

from pathlib import Path

import click

from metabench.cli import complete
from metabench.cli.options import data_option, out_option
from metabench.cli.output import format_options
from metabench.cli.page import Page, print_page
from metabench.errors import UnknownNameError, UsageError
from metabench.plugins import registry
from metabench.registry import KINDS, Entry, Registry
from metabench.rendering import Format


@click.command()
@click.argument("name", metavar="NAME|CELL", shell_complete=complete.anything)
@out_option
@data_option
@format_options
def command(name: str, out: Path, data_dir: Path, fmt: Format) -> None:
    """Show all that is known of something registered, or of a cell.

    \b
    metabench show maml                 an algorithm, backbone, data set or suite
    metabench show suite:omniglot       where two kinds share a name
    metabench show torchvision:resnet34 a backbone whose name has an argument
    metabench show my-suite.toml        a suite's file
    metabench show 3bd2ae34             a cell, by the first digits of its key
    metabench show quickdraw/5w1s15q/maml/conv4-32/seed0

    Cells are looked for in the result folder: their record or error, the end of their log, and the
    line that runs them again.
    """  # noqa: D301 (click looks for the character, not for a backslash and a b)
    print_page(find_page(name, out, data_dir), fmt)


def find_page(name: str, out: Path, data_dir: Path) -> Page:
    """The page on whatever has that name.

    Raises:
        UsageError: nothing has it, or several things have.
    """
    known = registry()
    if name.endswith(".toml"):
        from metabench.cli.show_plugin import suite_page
        from metabench.runner.suite import open_suite

        return suite_page(open_suite(name, known), known)
    entries = _entries(known, name)
    if len(entries) > 1:
        kinds = [f"{entry.kind}:{entry.name}" for entry in entries]
        raise UsageError(
            f"{name!r} is the name of {len(entries)} things",
            f"say which: metabench show {' or '.join(kinds)}",
        )
    if entries:
        return _entry_page(known, entries[0], data_dir)
    return _cell_page(known, name, out)


def _entries(known: Registry, name: str) -> list[Entry]:
    """What is registered under a name, or under KIND:NAME."""
    for kind in KINDS:
        if name.startswith(f"{kind}:"):
            return [known.get(kind, name.partition(":")[2])]
    return [entry for kind in KINDS if (entry := known.find(kind, name)) is not None]


def _entry_page(known: Registry, entry: Entry, data_dir: Path) -> Page:
    from metabench.cli.show_plugin import plugin_page, suite_page

    if entry.kind != "suite":
        return plugin_page(entry, data_dir)
    from metabench.runner.suite import load_suite

    return suite_page(load_suite(entry.load()), known)


def _cell_page(known: Registry, name: str, out: Path) -> Page:
    """The page on a cell; what looks like no cell at all is taken for a misspelt name."""
    from metabench.cli.show_cell import cell_page, find_cell
    from metabench.store.store import MARK, Store

    if (out / MARK).exists() or "/" in name:
        store = Store.open(out, create=False)
        try:
            return cell_page(store, find_cell(store, name))
        except UnknownNameError:
            if "/" in name:
                raise
    near = known.nearest(name)
    raise UnknownNameError(
        f"nothing is registered as {name!r}, and no cell in {out} has a key that begins so",
        f"did you mean {near!r}?" if near else "metabench list shows every name",
    )
