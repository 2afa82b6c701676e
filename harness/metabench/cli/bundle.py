"""`metabench bundle`: one file with rows and all that they stand on, to hand in."""

from __future__ import annotations

from pathlib import Path

import click

from metabench.cli import complete
from metabench.cli.ending import tell
from metabench.cli.options import out_option, suite_name, suite_option


@click.command()
@suite_option()
@click.option(
    "-a",
    "--algorithm",
    "algorithms",
    multiple=True,
    shell_complete=complete.names_of("algorithm"),
    help="Only these: a name, or name/variant.",
)
@out_option
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write. [default: SUITE.zip]",
)
def command(suite: str, algorithms: tuple[str, ...], out: Path, to: Path | None) -> None:
    """Write one file with rows of a suite and all that they stand on, to hand in.

    Records and predictions of every cell, which plugins they need and how these are installed, and
    on what they ran; no log, no weights, no path and no name of this machine. `metabench verify`
    says what somebody who gets the file can check.
    """
    from metabench.plugins import registry
    from metabench.publishing.bundle import bundle
    from metabench.publishing.published import stem_of
    from metabench.store.files import replace_bytes
    from metabench.store.machine import unique_name
    from metabench.store.store import Store

    store = Store.open(out, create=False)
    suite = suite_name(suite, store.suites())
    data = bundle(store, suite, registry(), algorithms)
    file = (to or Path(f"{stem_of(suite)}.zip")).absolute()
    replace_bytes(file, data, unique_name())
    tell(f"{file}: {len(data)} bytes; check it with: metabench verify {file.name}")
