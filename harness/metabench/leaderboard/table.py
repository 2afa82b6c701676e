"""The leaderboard of a suite, as rows and as the files `leaderboards/<suite>.csv` and `.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from metabench.leaderboard.across import across_sections
from metabench.leaderboard.commands import row_command
from metabench.leaderboard.rows import COLUMNS, TableRow, table_rows
from metabench.leaderboard.sections import LEGEND, Section, sections
from metabench.leaderboard.source import Source, StoreSource
from metabench.rendering import markdown_cell, to_csv, to_markdown
from metabench.store.files import replace_bytes, storing
from metabench.store.machine import unique_name
from metabench.store.store import Store

FOLDER = "leaderboards"
AGAIN = (
    "One line a row. Without `--dataset`, `--protocol`, `--algorithm` and `--backbone` it is the"
    " whole suite."
)


def leaderboard(store: Store, suite: str, machine: str | None = None) -> list[dict[str, object]]:
    """The rows of a suite's table, ranked and in order; missing values are None.

    Scores are computed anew from the episodes of each cell, and never taken from its record.

    Args:
        suite: a name of `store.suites()`.
        machine: whose times are shown (`machine_id`); None: this machine's.

    Returns:
        a table for each row with the keys of `COLUMNS`, in that order.

    Raises:
        UnknownNameError: the suite was never run into this result folder.
        StoreError: something can't be read, or doesn't fit together.
    """
    return [row.to_dict() for row in table_rows(StoreSource(store, machine), suite)]


def write_leaderboard(store: Store, suite: str) -> tuple[Path, Path]:
    """Write the table of a suite as CSV and Markdown; a reader finds the old or the new ones.

    Nothing in them but adapt_ms, predict_ms and train_s differs between two runs of the same
    cells: no time, path or host.

    Raises:
        UnknownNameError, StoreError: as `leaderboard`; or they can't be written.
    """
    source = StoreSource(store)
    rows = table_rows(source, suite)
    folder = store.root / FOLDER
    name = quote(suite, safe=" ")
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    with storing(folder):
        folder.mkdir(exist_ok=True)
        replace_bytes(csv, leaderboard_csv(rows).encode(), unique_name())
        replace_bytes(markdown, leaderboard_markdown(source, suite, rows).encode(), unique_name())
    return csv, markdown


def leaderboard_csv(rows: Sequence[TableRow]) -> str:
    """All columns of all rows."""
    return to_csv([row.to_dict() for row in rows], COLUMNS)


def leaderboard_markdown(source: Source, suite: str, rows: Sequence[TableRow]) -> str:
    """The columns that people read, a table for what may be compared; how to run it again."""
    parts = [f"# {markdown_cell(suite)}", *map(_section, sections(rows))]
    parts += [*map(_section, across_sections(rows)), LEGEND]
    parts += _again(source, rows)
    parts.append(_versions(source, rows))
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(section: Section) -> str:
    title, facts = markdown_cell(section.title), markdown_cell(section.facts)
    table = to_markdown(section.rows, section.columns).rstrip("\n")
    return "\n\n".join(filter(None, [f"## {title}", facts, section.note, table]))


def _again(source: Source, rows: Sequence[TableRow]) -> list[str]:
    commands = [command for row in rows if (command := _command(source, row))]
    if not commands:
        return []
    # A backtick could end the block.
    lines = [command.replace("`", "'") for command in commands]
    return ["## How to run it again", AGAIN, "\n".join(["```sh", *lines, "```"])]


def _command(source: Source, row: TableRow) -> str:
    """The line that runs a row again, all its seeds; empty where nothing of it was ever run."""
    infos = [source.run_info(record.key) for record in row.records]
    infos += [member.failed.run for member in row.members if member.failed is not None]
    if row.identity is None or not infos:
        return ""
    seeds = [member.labels.seed for member in row.members]
    # What was noted for this suite: another may have trained the cell that this one reuses.
    noted = row.members[0].command or infos[0].command
    numerics = row.identity.numerics
    return row_command(noted, seeds, numerics.device, numerics.engine, numerics.dtype)


def _versions(source: Source, rows: Sequence[TableRow]) -> str:
    records = [record for row in rows for record in row.records]
    if not records:
        return ""
    own = sorted({source.run_info(record.key).metabench for record in records} - {""})
    torch = sorted({record.identity.numerics.torch for record in records})
    text = f"metabench {', '.join(own) or 'of unknown version'} and torch {', '.join(torch)}"
    return f"Made with {markdown_cell(text)}."
