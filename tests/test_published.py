"""The tables that are published: their shape, and that the README shows the same numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from metabench.leaderboard.members import STATUSES
from metabench.leaderboard.rows import COLUMNS
from metabench.plugins import load_registry
from metabench.runner.matrix import build_matrix
from metabench.runner.suite import open_suite
from metabench.testing.peers.rows import COLUMNS as SPEED_COLUMNS

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "leaderboards"
MEASUREMENTS = TABLES / "measurements"
ROW = ("protocol", "algorithm", "variant", "backbone")
Rows = list[dict[str, str]]
Key = tuple[str, ...]


def read(name: str) -> Rows:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def by_row(rows: Iterable[dict[str, str]]) -> dict[Key, dict[str, str]]:
    found = {tuple(row[name] for name in ROW): row for row in rows}
    assert found
    return found


def readme_rows() -> Rows:
    """The rows of the README's tables of results, as they are headed."""
    rows: Rows = []
    heading: dict[str, str] = {}
    columns: list[str] = []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\*\*(\w+), (\w+), (\w+)\*\*", line):
            heading = dict(zip(("dataset", "protocol", "inference"), found.groups(), strict=True))
            columns = []
        elif heading and line.startswith("|"):
            values = [value.strip() for value in line.strip("|").split("|")]
            if not columns:
                columns = values
            elif set(line) - set("|- "):
                rows.append(heading | dict(zip(columns, values, strict=True)))
        elif columns and line:
            heading, columns = {}, []
    return rows


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.csv")), ids=lambda path: path.name)
def test_a_published_leaderboard_has_the_promised_columns(path: Path) -> None:
    rows = read(path.name)
    assert rows
    assert list(rows[0]) == COLUMNS
    assert {row["status"] for row in rows} <= set(STATUSES)
    for row in rows:
        assert row["suite"] == path.stem
        assert all(bool(row[name]) == (row["status"] == "ok") for name in ("score", "ci95")), row
        assert bool(row["seed_std"]) == (row["status"] == "ok" and int(row["seeds"]) >= 3), row


@pytest.mark.parametrize("path", sorted(MEASUREMENTS.glob("*.csv")), ids=lambda path: path.name)
def test_a_measurement_has_a_value_in_every_column(path: Path) -> None:
    rows = read(f"measurements/{path.name}")
    assert rows
    assert all(None not in row and None not in row.values() for row in rows)


def test_the_speed_table_has_the_columns_of_its_benchmark() -> None:
    assert tuple(read("measurements/speed.csv")[0]) == SPEED_COLUMNS


def test_the_table_of_the_readme_is_of_the_rows_that_are_published() -> None:
    shown, published = by_row(readme_rows()), by_row(read("fewshot.csv"))
    assert shown.keys() == published.keys()
    for key, row in shown.items():
        for name in ("dataset", "inference", "budget"):
            assert row[name] == published[key][name], key


def test_the_scores_of_the_readme_are_those_that_were_checked() -> None:
    """Of its one seed: `fewshot-check.csv` has them, but for pixels, which no seed changes."""
    shown, checked = by_row(readme_rows()), by_row(read("measurements/fewshot-check.csv"))
    pixels = {key: row for key, row in by_row(read("fewshot.csv")).items() if row["budget"] == "0"}
    assert all(row["seed_std"] == "0.0000" for row in pixels.values())
    assert shown.keys() == checked.keys() | pixels.keys()
    for key, row in shown.items():
        if key in pixels:
            assert (row["score"], row["ci95"]) == (pixels[key]["score"], pixels[key]["ci95"])
        else:
            assert row["score"] == checked[key]["score"], key


@pytest.mark.parametrize("suite", ["fewshot", "fewshot-full"])
def test_the_published_table_is_of_the_suite_as_it_is(suite: str) -> None:
    registry = load_registry()
    cells = build_matrix(open_suite(suite, registry), registry)
    asked = {
        (
            cell.protocol.name,
            cell.algorithm.name,
            cell.variant,
            cell.backbone.label,
            cell.protocol.short_digest,
            cell.recipe.short_digest,
        )
        for cell in cells
    }
    published = [
        (*(row[name] for name in ROW), row["protocol_digest"], row["recipe_digest"])
        for row in read(f"{suite}.csv")
    ]
    assert sorted(published) == sorted(asked)


def test_the_readme_ranks_by_score() -> None:
    tables: dict[Key, list[float]] = {}
    for row in readme_rows():
        table = row["dataset"], row["protocol"], row["inference"]
        tables.setdefault(table, []).append(float(row["score"]))
    assert len(tables) == 4
    for scores in tables.values():
        assert scores == sorted(scores, reverse=True)
