"""`metabench status`: what is finished, failed or missing, what runs now, what would be reused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import click

from metabench.cli import complete
from metabench.cli.options import data_option, device_option, out_option
from metabench.cli.output import format_options, print_rows, print_text
from metabench.errors import UsageError
from metabench.rendering import Format, Row, plain, to_json

if TYPE_CHECKING:
    from metabench.leaderboard.members import Member
    from metabench.store.store import Store

COUNTS = ("suite", "cells", "finished", "failed", "missing", "running")
FAILED = ("suite", "cell", "status", "where", "error")
RUNNING = ("cell", "key", "last_sign_s")
EXPLAINED = ("suite", "cell", "state", "why")
LONGEST = 200


@click.command()
@out_option
@click.option(
    "-s",
    "--suite",
    shell_complete=complete.suites,
    help="One suite; with --explain also the path of its file.",
)
@click.option("--explain", is_flag=True, help="Say of each cell whether it would be reused.")
@data_option
@device_option
@format_options
def command(
    out: Path, suite: str | None, explain: bool, data_dir: Path, device: str, fmt: Format
) -> None:
    """Say what is finished, failed or missing in a result folder, and what runs now.

    With --explain: for each cell of a suite as it would run now, whether the finished one is
    reused, and if not, what differs. The data folder and the device are for this only.
    """
    from metabench.store.store import Store

    store = Store.open(out, create=False)
    if explain:
        rows = list(_explained(store, suite, data_dir, device))
        print_rows(rows, EXPLAINED, fmt)
        return
    cells = _cells(store, suite)
    running = list(_running(store, cells))
    tables: dict[str, tuple[list[Row], tuple[str, ...]]] = {
        "suites": (_counts(cells, {str(row["key"]) for row in running}), COUNTS),
        "failed": (list(_failed(cells)), FAILED),
        "running": (running, RUNNING),
    }
    _print(tables, fmt)


def _cells(store: Store, suite: str | None) -> dict[str, list[Member]]:
    """The cells of one suite, or of all that were run into the folder."""
    from metabench.leaderboard.members import members

    if suite is None:
        return {name: members(store, name) for name in store.suites()}
    name = PurePath(suite).stem if suite.endswith(".toml") else suite
    return {name: members(store, name)}


def _counts(cells: dict[str, list[Member]], running: set[str]) -> list[Row]:
    rows: list[Row] = []
    for suite, members in cells.items():
        count = Counter(member.status for member in members)
        rows.append(
            {
                "suite": suite,
                "cells": len(members),
                "finished": count["ok"],
                "failed": len(members) - count["ok"] - count["missing"],
                "missing": count["missing"],
                "running": sum(member.key in running for member in members),
            }
        )
    return rows


def _failed(cells: dict[str, list[Member]]) -> Iterator[Row]:
    for suite, members in cells.items():
        for member in members:
            if member.failed is not None:
                failure = member.failed.failure
                error = ": ".join(filter(None, [failure.exception, failure.message]))
                yield {
                    "suite": suite,
                    "cell": member.labels.id,
                    "status": failure.status,
                    "where": failure.where,
                    "error": plain(error)[:LONGEST],
                }


def _running(store: Store, cells: dict[str, list[Member]]) -> Iterator[Row]:
    """Training states with a sign of life; shared phases have no cell's name."""
    from metabench.store.partial import HEARTBEAT, is_stale
    from metabench.store.shelf import keys_in

    names = {member.key: member.labels.id for members in cells.values() for member in members}
    place = store.root / "partial"
    for key in keys_in(place):
        for folder in sorted((place / key).glob("*-*")):
            if is_stale(folder) or not (folder / HEARTBEAT).exists():
                continue
            seconds = max(0.0, time.time() - (folder / HEARTBEAT).stat().st_mtime)
            name = names.get(key, "a shared phase, or a cell of another suite")
            yield {"cell": name, "key": key, "last_sign_s": round(seconds)}


def _print(tables: dict[str, tuple[list[Row], tuple[str, ...]]], fmt: Format) -> None:
    """All tables; a CSV has the counts only."""
    rows, columns = tables["suites"]
    if fmt == "csv":
        print_rows(rows, columns, fmt)
    elif fmt == "json":
        print_text(to_json({name: rows for name, (rows, _) in tables.items()}))
    else:
        print_rows(rows, columns, fmt)
        for name in ("failed", "running"):
            rows, columns = tables[name]
            if rows:
                print_text(f"\n## {name}\n\n" if fmt == "markdown" else f"\n{name}\n")
                print_rows(rows, columns, fmt)


def _explained(store: Store, suite: str | None, data_dir: Path, device: str) -> Iterator[Row]:
    from metabench.engine.numerics import resolve_device
    from metabench.leaderboard.explain import explain
    from metabench.plugins import registry
    from metabench.runner.bench import Workbench
    from metabench.runner.matrix import build_matrix
    from metabench.runner.suite import open_suite

    known = registry()
    bench = Workbench(known, data_dir, resolve_device(device))
    for name in [suite] if suite is not None else registered_suites(store, known.suites):
        opened = open_suite(name, known)
        for cell, state, why in explain(store, bench, build_matrix(opened, known)):
            yield {"suite": opened.name, "cell": cell.id, "state": state, "why": why}


def registered_suites(store: Store, known: Iterable[str]) -> list[str]:
    """The suites of the folder that can be opened by their names.

    Raises:
        UsageError: there is none.
    """
    names, there = set(known), store.suites()
    for name in there:
        if name not in names:
            click.echo(f"metabench: name the file of suite {plain(name)!r} with --suite", err=True)
    found = [name for name in there if name in names]
    if not found:
        raise UsageError(f"no suite was run into {store.root} that is registered", "name one: -s")
    return found
