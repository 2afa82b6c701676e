"""`metabench clean`: delete what nothing in a result folder refers to any more."""

from __future__ import annotations

from pathlib import Path

import click

from metabench.cli.confirm import confirmed
from metabench.cli.options import out_option
from metabench.cli.output import format_options, print_rows
from metabench.cli.sizes import size_text
from metabench.rendering import Format, Row


@click.command()
@out_option
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
@format_options
def command(out: Path, yes: bool, fmt: Format) -> None:
    """Delete what nothing in a result folder refers to any more.

    That is cells, failures and shared phases that no suite stands on, training state that nobody
    goes on with, and what was set aside as corrupted. It is listed, and you are asked, first.
    """
    from metabench.store.store import Store

    store = Store.open(out, create=False)
    found = store.unreferenced()
    if not found and fmt == "table":
        click.echo("metabench: nothing to clean", err=True)
        return
    rows: list[Row] = [
        {
            "path": leftover.path.relative_to(store.root).as_posix(),
            "what": leftover.what,
            "size": size_text(leftover.bytes) if fmt == "table" else leftover.bytes,
        }
        for leftover in found
    ]
    print_rows(rows, ("path", "what", "size"), fmt)
    total = size_text(sum(leftover.bytes for leftover in found))
    if not found or not confirmed(f"Delete these {len(found)} ({total})?", yes):
        click.echo("metabench: nothing was deleted", err=True)
        return
    click.echo(f"metabench: {size_text(store.clean(found))} freed", err=True)
