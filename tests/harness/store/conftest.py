"""A small cell with real files, for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save  # not .torch: other processes use this file, and start faster

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol
from metabench.store.files import write_bytes
from metabench.store.keys import (
    CellIdentity,
    DatasetIdentity,
    Numerics,
    PhaseIdentity,
    PluginIdentity,
)
from metabench.store.record import (
    CHECKPOINT,
    CURVE,
    EPISODES,
    LOG,
    RUN,
    CellRecord,
    PhaseRecord,
    PhaseResult,
    Result,
    RunInfo,
)
from metabench.store.results import EpisodeResults
from metabench.store.store import Store

NUMERICS = Numerics(
    dtype="float32", device="cpu", threads=1, engine="batched", chunks={"test": 16}, torch="2.14"
)
DATASET = DatasetIdentity(
    name="quickdraw", digest="d" * 32, classes="e" * 32, item={"kind": "image"}, code="f" * 32
)
BACKBONE = PluginIdentity(name="conv4", hp={"width": 32, "pool": "stride"}, code="b" * 32)


def cell_identity(seed: int = 0, **changes: object) -> CellIdentity:
    parts = {
        "protocol": Protocol(ways=5, shots=1, episodes=20).identity,
        "recipe": Recipe(steps=800).identity,
        "dataset": DATASET,
        "algorithm": PluginIdentity(name="maml", hp={"inner_lr": 0.4, "steps": 5}, code="a" * 32),
        "backbone": BACKBONE,
        "seed": seed,
        "numerics": NUMERICS,
    }
    return CellIdentity.model_validate(parts | changes)


def episode_results(seed: int = 0, episodes: int = 20, ways: int = 5) -> EpisodeResults:
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(345, ways, replace=False) for _ in range(episodes)])
    targets = np.stack([rng.permutation(np.repeat(np.arange(ways), 15)) for _ in range(episodes)])
    guesses = rng.integers(0, ways, targets.shape)
    predictions = np.where(rng.random(targets.shape) < 0.6, targets, guesses)
    return EpisodeResults(targets, predictions, np.take_along_axis(drawn, targets, axis=1))


def build_cell(folder: Path, seed: int = 0, note: str = "") -> None:
    episode_results(seed).to_parquet(folder / EPISODES)
    write_bytes(folder / CHECKPOINT, save({"weight": np.full((2, 3), seed, dtype=np.float32)}))
    write_bytes(folder / CURVE, b"step,loss\n0,1.6094\n")
    write_bytes(folder / LOG, f"12:00:01 training {note}\n".encode())
    write_bytes(folder / RUN, RunInfo(device="cpu", command=note).model_dump_json().encode())


def cell_result(seed: int = 0) -> Result:
    results = episode_results(seed)
    return Result(
        score=float(results.scores("accuracy").mean()),
        episodes=len(results.scores("accuracy")),
        validation_score=0.5,
        selected_step=600,
        parameters=28_000,
        train_items=64_000,
        budget=800,
    )


def publish_cell(store: Store, seed: int = 0, note: str = "", **more: object) -> CellRecord:
    return store.publish(
        cell_identity(seed),
        lambda folder: build_cell(folder, seed, note),
        inference="inductive",
        result=cell_result(seed),
        **more,
    )


def publish_phase(store: Store, seed: int = 0) -> PhaseRecord:
    def build(folder: Path) -> None:
        write_bytes(folder / CHECKPOINT, save({"weight": np.zeros(3, dtype=np.float32)}))
        write_bytes(folder / CURVE, b"step,loss\n")

    return store.publish_phase(
        phase_identity(seed), build, result=PhaseResult(train_items=100, budget=10)
    )


def phase_identity(seed: int = 0, **changes: object) -> PhaseIdentity:
    parts = {
        "dataset": DATASET,
        "classes": {"class_split": "default", "image_size": None, "rotation": "none"},
        "backbone": BACKBONE,
        "recipe": Recipe(steps=10).identity,
        "name": "pretrain",
        "module": "1" * 32,
        "code": "c" * 32,
        "seed": seed,
        "numerics": NUMERICS,
    }
    return PhaseIdentity.model_validate(parts | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "results")


@pytest.fixture
def make_identity() -> Callable[..., CellIdentity]:
    return cell_identity


@pytest.fixture
def make_phase_identity() -> Callable[..., PhaseIdentity]:
    return phase_identity


@pytest.fixture
def publish() -> Callable[..., CellRecord]:
    """`publish(store, seed)` puts a whole cell in place."""
    return publish_cell


@pytest.fixture
def put_phase() -> Callable[..., PhaseRecord]:
    """`put_phase(store, seed)` puts a whole shared phase in place."""
    return publish_phase


@pytest.fixture
def make_results() -> Callable[..., EpisodeResults]:
    return episode_results


@pytest.fixture
def make_result() -> Callable[..., Result]:
    return cell_result


@pytest.fixture
def build() -> Callable[..., None]:
    """`build(folder, seed, note)` writes a cell's files."""
    return build_cell
