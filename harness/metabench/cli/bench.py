"""`metabench bench`: time whatever is registered, a contributed algorithm for instance."""

from __future__ import annotations

from pathlib import Path

import click

from metabench.cli import complete
from metabench.cli.options import data_option, device_option
from metabench.cli.output import format_options, print_rows
from metabench.errors import UsageError
from metabench.rendering import Format


@click.command()
@click.option(
    "-a",
    "--algorithm",
    "algorithms",
    multiple=True,
    shell_complete=complete.names_of("algorithm"),
    help="Only these algorithms.",
)
@click.option(
    "-b",
    "--backbone",
    "backbones",
    multiple=True,
    shell_complete=complete.names_of("backbone"),
    help="On these backbones. [default: the first that is registered]",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    shell_complete=complete.names_of("dataset"),
    help="The start of these data sets.",
)
@click.option("--table", is_flag=True, help="Print one table instead of pytest-benchmark's report.")
@device_option
@data_option
@format_options
@click.argument("pytest_args", nargs=-1, metavar="[-- PYTEST_ARGS]...")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    algorithms: tuple[str, ...],
    backbones: tuple[str, ...],
    datasets: tuple[str, ...],
    table: bool,
    device: str,
    data_dir: Path,
    fmt: Format,
    pytest_args: tuple[str, ...],
) -> None:
    """Time all that is registered: sampling, inner loops, meta-steps, evaluation.

    Names can be repeated, and are shell-style patterns; with any, nothing else is timed. What
    stands after `--` goes to pytest, such as `-- --benchmark-save=before`, and later
    `-- --benchmark-compare`.
    """
    if fmt != "table" and not table:
        raise UsageError(
            "pytest-benchmark's report has one format",
            "add --table, or write its JSON: metabench bench -- --benchmark-json=FILE",
        )
    from metabench.testing.benchmarks.asked import Asked
    from metabench.testing.benchmarks.launch import COLUMNS, run_benchmarks, tabulated

    asked = Asked(algorithms, backbones, datasets, device, data_dir)
    if not table:
        ctx.exit(run_benchmarks(asked, pytest_args))
    code, rows = tabulated(asked, pytest_args)
    print_rows(rows, COLUMNS, fmt)
    ctx.exit(code)
