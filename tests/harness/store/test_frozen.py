"""Results that schema 1 wrote, kept as they were: whatever changes, they can be read.

`frozen/v1` is the result folder of one real cell that stands on a shared training of one step
(nearest-centroid over conv4 of width 1, 5w1s2q, 8 episodes). A change that fails here changes the
format: raise `SCHEMA`, keep reading this folder, and freeze a new one beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up_tables import read_csv

from metabench.leaderboard.rows import COLUMNS
from metabench.leaderboard.table import leaderboard, write_leaderboard
from metabench.store.keys import SCHEMA
from metabench.store.record import CHECKPOINT, CURVE, EPISODES, RECORD
from metabench.store.store import Store
from metabench.store.tensors import read_tensors

FROZEN = Path(__file__).parent / "frozen"
CELL = "74aeefabe9644043e44cdb42c1aa9b44"
PHASE = "1cf341fab301c0ae7483773cd0be5975"
MACHINE = "m-ea89742a"
CONVOLUTIONS = {f"backbone.blocks.{block}.conv.weight" for block in range(4)}


@pytest.fixture
def frozen(tmp_path: Path) -> Store:
    """A copy of it: what looks corrupted would be moved away."""
    shutil.copytree(FROZEN / "v1", tmp_path / "v1")
    return Store.open(tmp_path / "v1", create=False)


def test_there_is_a_frozen_folder_of_every_schema() -> None:
    assert {path.name for path in FROZEN.iterdir()} == {f"v{n}" for n in range(1, SCHEMA + 1)}


def test_its_records_are_found_whole(frozen: Store) -> None:
    cell, phase = frozen.find(CELL), frozen.find_phase(PHASE)
    assert cell is not None
    assert phase is not None
    assert list(frozen.records()) == [cell]
    assert cell.phases == (PHASE,)
    assert cell.inference == "inductive"
    assert sorted(cell.files) == sorted([CHECKPOINT, EPISODES, CURVE])
    assert sorted(phase.files) == sorted([CHECKPOINT, CURVE])
    assert cell.identity.algorithm.name == "nearest-centroid"
    assert (cell.result.train_items, cell.result.budget, cell.result.parameters) == (4, 1, 48)
    assert (phase.result.train_items, phase.result.budget) == (4, 1)


def test_they_would_be_written_alike_today(frozen: Store) -> None:
    cell, phase = frozen.find(CELL), frozen.find_phase(PHASE)
    assert cell is not None
    assert phase is not None
    assert cell.to_bytes() == (frozen.folder(CELL) / RECORD).read_bytes()
    assert phase.to_bytes() == (frozen.phases.folder(PHASE) / RECORD).read_bytes()
    assert (cell.identity.key, phase.identity.key) == (CELL, PHASE)
    frozen.episodes(CELL).to_parquet(frozen.root / "again.parquet")
    again = pq.read_table(frozen.root / "again.parquet")
    assert again.equals(pq.read_table(frozen.folder(CELL) / EPISODES))


def test_its_files_are_read(frozen: Store) -> None:
    cell = frozen.find(CELL)
    assert cell is not None
    episodes = frozen.episodes(CELL)
    assert episodes.targets.shape == episodes.predictions.shape == (8, 5 * 2)
    assert (episodes.targets == episodes.predictions).mean() == pytest.approx(cell.result.score)
    tensors, _ = read_tensors(frozen.folder(CELL) / CHECKPOINT)
    assert (
        sum(name.startswith("backbone.") and value.ndim == 4 for name, value in tensors.items())
        == 4
    )
    run = frozen.run_info(CELL)
    assert (run.metabench, run.device, run.threads) == ("0.1.0", "cpu", 1)
    assert "--suite frozen.toml" in run.command
    assert frozen.run_info(PHASE).train_s == pytest.approx(0.0697, abs=1e-4)
    times = frozen.read_timing(CELL, MACHINE)
    assert times is not None
    assert times["episodes"] == 15
    assert frozen.suites() == ["frozen"]
    assert [cell.key for cell in frozen.suite("frozen")] == [CELL]


def test_its_table_is_the_one_that_was_written(frozen: Store) -> None:
    kept = (frozen.root / "leaderboards" / "frozen.csv").read_text(encoding="utf-8")
    assert set(kept.splitlines()[0].split(",")) < set(COLUMNS)  # later ones are added
    written, _ = write_leaderboard(frozen, "frozen")
    [today] = read_csv(written.read_text(encoding="utf-8"))
    [row] = read_csv(kept)
    timed = {name: today.pop(name) for name in ("adapt_ms", "predict_ms")}  # of this machine
    assert {name: today[name] for name in row if name not in timed} == {
        name: value for name, value in row.items() if name not in timed
    }
    [there] = leaderboard(frozen, "frozen", machine=MACHINE)
    assert {name: f"{there[name]:.4f}" for name in timed} == {name: row[name] for name in timed}
