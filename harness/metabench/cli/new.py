"""`metabench new`: a plugin's project, which works and passes `metabench check` as it is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from metabench.cli.choice import NearestChoice
from metabench.cli.output import print_text
from metabench.registry import Kind


@click.command()
@click.argument("kind", type=NearestChoice(get_args(Kind)), metavar="KIND")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The folder that the project's folder goes into. [default: the current one]",
)
def command(kind: Kind, name: str, into: Path) -> None:
    """Write the project of an algorithm, backbone, dataset or suite into a new folder NAME.

    It is a package that can be installed and published as it is: an entry point, one commented
    class that works, a test that runs the conformance kit, a suite to try it with, and a README.
    """
    from metabench.plugins import registry
    from metabench.scaffold import write_project

    written = write_project(kind, name, into, registry())
    folder = into / name
    lines = [f"{path}" for path in written]
    lines += ["", "Next:", f"  metabench check {folder}", f"  pip install -e '{folder}[test]'"]
    print_text("\n".join(lines) + "\n")
