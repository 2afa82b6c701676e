"""Typing a command again, typing it elsewhere, typing it with more workers: the same numbers."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from metabench.store.record import CHECKPOINT, CURVE, EPISODES, RECORD

TIMES = ("adapt_ms", "predict_ms", "train_s")
CELLS = 3
Here = Callable[..., Result]
Finished = tuple[Path, Result]


def files_of(results: Path) -> dict[str, bytes]:
    """Content by path of what has to be the same wherever a cell runs."""
    names = (RECORD, EPISODES, CHECKPOINT, CURVE)
    shelves = ("cells", "phases")
    found = [p for shelf in shelves for n in names for p in results.glob(f"{shelf}/*/{n}")]
    return {str(path.relative_to(results)): path.read_bytes() for path in found}


def table_of(results: Path) -> list[dict[str, str]]:
    with (results / "leaderboards" / "tiny.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A result folder with all cells of the tiny suite."""
    results = tmp_path / "out"
    shutil.copytree(finished[0], results)
    return results


def test_a_run_prints_its_table_and_says_where_it_is(finished: Finished) -> None:
    results, done = finished
    for name in ("protonet", "baseline", "nearest-centroid"):
        assert name in done.stdout
    lines = done.stderr.splitlines()
    assert sum(" ok " in line for line in lines) == CELLS + 1  # and one shared training
    [protonet] = [line for line in lines if "5w1s3q/protonet/conv4-4/seed0 ok" in line]
    assert ", validation 0." in protonet
    assert lines[-2] == f"{CELLS} cells: 0 reused, {CELLS} run"
    assert lines[-1] == f"the table is in {results / 'leaderboards' / 'tiny.csv'}"
    rows = table_of(results)
    assert [row["status"] for row in rows] == ["ok"] * CELLS
    assert all(float(row[name]) > 0 for row in rows for name in TIMES)


def test_the_same_command_again_reuses_everything(here: Here, copy: Path) -> None:
    before = files_of(copy)
    done = here(copy, "--jobs", "1")
    assert done.exit_code == 0
    assert f"{CELLS} of {CELLS} cells finished before: reused" in done.stderr
    assert f"{CELLS} cells: {CELLS} reused, 0 run" in done.stderr
    assert "timing" not in done.stderr
    assert files_of(copy) == before


def test_two_workers_and_an_empty_folder_give_the_same_bytes(
    here: Here, finished: Finished, tmp_path: Path
) -> None:
    done = here(tmp_path / "out", "--jobs", "2", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert len(files_of(finished[0])) == 4 * CELLS + 3  # a shared training has no episodes
    assert files_of(tmp_path / "out") == files_of(finished[0])
    assert timeless(table_of(tmp_path / "out")) == timeless(table_of(finished[0]))


def test_what_is_corrupted_is_named_set_aside_and_run_again(here: Here, copy: Path) -> None:
    sound = files_of(copy)
    damage = {
        RECORD: b'{"schema_version": 1',
        EPISODES: b"PAR1 is not all of it PAR1",
        CHECKPOINT: b"\0",
    }
    cells = sorted((copy / "cells").iterdir())
    for (name, content), cell in zip(damage.items(), cells, strict=True):
        (cell / name).write_bytes(content)
    done = here(copy, "--jobs", "1")
    assert done.exit_code == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(warnings) == len(cells)
    for (name, content), cell in zip(damage.items(), cells, strict=True):
        aside = copy / "corrupt" / f"{cell.name}-1"
        [warning] = [line for line in warnings if f"cell {cell.name} is corrupted ({name}" in line]
        assert warning.endswith(f"set aside as {aside}")
        assert (aside / name).read_bytes() == content
    assert f"{CELLS} cells: 0 reused, {CELLS} run" in done.stderr
    assert files_of(copy) == sound


@pytest.mark.slow
def test_fresh_runs_finished_cells_again(here: Here, copy: Path) -> None:
    sound = files_of(copy)
    times = {path: path.stat().st_mtime_ns for path in copy.glob(f"cells/*/{RECORD}")}
    done = here(copy, "-a", "protonet", "--jobs", "1", "--fresh")
    assert done.exit_code == 0, done.stderr
    assert "1 cell: 0 reused, 1 run" in done.stderr
    assert files_of(copy) == sound
    assert sum(path.stat().st_mtime_ns != time for path, time in times.items()) == 1


def test_two_runs_into_one_folder_at_once_do_not_harm_each_other(
    metabench, finished: Finished
) -> None:
    words = ["run", "-s", "tiny.toml", "-o", "out", "--jobs", "1"]
    both = [metabench.begin(*words) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    results = metabench.folder / "out"
    assert files_of(results) == files_of(finished[0])
    assert timeless(table_of(results)) == timeless(table_of(finished[0]))
    assert not any((results / "corrupt").glob("*"))
    assert not any((results / "tmp").iterdir())
