"""Small made-up result folders, for the tests of tables and of the verbs that read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Typed

from metabench.api.recipe import Recipe
from metabench.cli import main
from metabench.episodes.protocol import Protocol
from metabench.store.keys import (
    CellIdentity,
    DatasetIdentity,
    Numerics,
    PhaseIdentity,
    PluginIdentity,
)
from metabench.store.machine import machine_id
from metabench.store.record import DISJOINT, EPISODES, Failure, PhaseResult, Result, RunInfo
from metabench.store.results import EpisodeResults
from metabench.store.store import Store
from metabench.store.suites import SuiteCell

PROTOCOL = Protocol(ways=5, shots=1, queries=3, episodes=8)


def _ran(
    device: str, instructions: str, started: str, train_s: float | None, command: str
) -> RunInfo:
    run = RunInfo(metabench="0.1.0", torch="2.14.0", device=device, instructions=instructions)
    return run.model_copy(update={"started": started, "train_s": train_s, "command": command})


def _apart(
    protocol: Protocol, disjoint: int, key: str, skill: float, shift: int, luck: int, sure: bool
) -> list[EpisodeResults]:
    """What was predicted for so many disjoint episodes; nothing where there are none."""
    if not disjoint:
        return []
    apart = protocol.model_copy(update={"episodes": disjoint})
    return [made_up(apart, key, skill, shift + 1, luck, sure)]


class Results:
    """A result folder that cells are put into, finished, failed or missing, without training.

    Attributes:
        store: the folder.
        predicted: what the finished cells predicted, by key.
    """

    def __init__(self, root: Path) -> None:
        self.store = Store.open(root)
        self.predicted: dict[str, EpisodeResults] = {}
        self._noted: dict[str, list[SuiteCell]] = {}

    def add(
        self,
        algorithm: str = "maml",
        seed: int = 0,
        *,
        suite: str = "study",
        dataset: str = "quickdraw",
        protocol: Protocol = PROTOCOL,
        variant: str = "",
        backbone: str = "conv4-32",
        status: str = "ok",
        inference: str = "inductive",
        skill: float = 0.6,
        content: str = "d" * 32,
        code: str = "a" * 32,
        hp: dict[str, Any] | None = None,
        recipe: Recipe | None = None,
        device: str = "cpu",
        budget: int = 800,
        train_s: float | None = 2.0,
        phases: Iterable[str] = (),
        episode_shift: int = 0,
        command: str | None = None,
        label_protocol: Protocol | None = None,
        figures: Mapping[str, float] | None = None,
        started: str = "2026-01-01T00:00:00+00:00",
        instructions: str = "AVX2",
        disjoint: int = 0,
        sure: bool = False,
        luck: int = 0,
        vouched: bool = True,
    ) -> str:
        """Put a cell in, and note it for its suite; returns its key.

        Args:
            disjoint: how many disjoint episodes it has.
            sure: whether it gives probabilities.
            luck: another one, and the same cell predicts otherwise.
            vouched: whether its record has digests of its predictions, as those of today.
        """
        settings = {"variant": variant, **(hp or {})}
        identity = CellIdentity(
            protocol=protocol.identity,
            recipe=(recipe or Recipe(steps=800)).identity,
            dataset=_dataset(content),
            algorithm=PluginIdentity(name=algorithm, hp=settings, code=code),
            backbone=PluginIdentity(name="conv4", hp={"label": backbone}, code="b" * 32),
            seed=seed,
            numerics=_numerics(device),
        )
        named = f"{algorithm}:{variant}" if variant else algorithm
        options = f"--dataset {dataset} --algorithm {algorithm} --backbone {backbone}"
        typed = f"metabench run --suite {suite} {options} --seed {seed}"
        run = _ran(device, instructions, started, train_s, typed if command is None else command)
        if status == "ok":
            told = identity.key, skill, episode_shift, luck, sure
            parts = [made_up(protocol, *told), *_apart(protocol, disjoint, *told)]
            result = _result(parts, budget, dict(figures or {}), vouched)
            self._publish(identity, parts, run, inference, result, tuple(phases))
        elif status != "missing":
            failure = Failure(status=status, exception="ValueError", message=f"{named} broke")
            self.store.fail(identity, failure, run)
        labels = {
            "id": f"{dataset}/{protocol.name}/{named}/{backbone}/seed{seed}",
            **{"dataset": dataset, "protocol": protocol.name},
            "protocol_digest": (label_protocol or protocol).digest,
            **{"metric": protocol.metric, "algorithm": algorithm, "variant": variant},
            **{"backbone": backbone, "seed": seed},
        }
        return self._note(suite, SuiteCell(key=identity.key, labels=labels))

    def _note(self, suite: str, cell: SuiteCell) -> str:
        noted = self._noted.setdefault(suite, [])
        noted.append(cell)
        self.store.remember_suite(suite, noted)
        return cell.key

    def row(self, algorithm: str = "maml", seeds: int = 3, **options: Any) -> list[str]:
        """Put a row of cells in, alike but for the seed; returns their keys."""
        return [self.add(algorithm, seed, **options) for seed in range(seeds)]

    def phase(self, seed: int = 0, train_s: float = 10.0) -> str:
        """Put a shared phase in; returns its key."""
        identity = PhaseIdentity(
            dataset=_dataset("d" * 32),
            classes={},
            backbone=PluginIdentity(name="conv4", code="b" * 32),
            recipe={},
            name="pretrain",
            module="m" * 32,
            code="e" * 32,
            seed=seed,
            numerics=_numerics("cpu"),
        )

        def build(folder: Path) -> None:
            run = RunInfo(train_s=train_s).model_dump(mode="json")
            (folder / "run.json").write_text(json.dumps(run))

        result = PhaseResult(train_items=6400, budget=100)
        return self.store.publish_phase(identity, build, result=result).key

    def time(self, key: str, adapt_ms: float, predict_ms: float, machine: str = "") -> None:
        """Note how long adapting and predicting took."""
        times = {"adapt_ms": adapt_ms, "predict_ms": predict_ms}
        self.store.write_timing(key, machine or machine_id("cpu"), times)

    def _publish(
        self,
        identity: CellIdentity,
        parts: list[EpisodeResults],
        run: RunInfo,
        inference: str,
        result: Result,
        phases: tuple[str, ...],
    ) -> None:
        def build(folder: Path) -> None:
            for name, part in zip((EPISODES, DISJOINT), parts, strict=False):
                part.to_parquet(folder / name)
            (folder / "run.json").write_text(json.dumps(run.model_dump(mode="json")))
            (folder / "log.txt").write_text("".join(f"line {n}\n" for n in range(50)))

        self.store.publish(identity, build, inference=inference, result=result, phases=phases)
        self.predicted[identity.key] = parts[0]


def _result(
    parts: list[EpisodeResults], budget: int, figures: dict[str, float], vouched: bool
) -> Result:
    """A score that no table may believe: tables compute it from the episodes."""
    digests = [part.digest for part in parts] if vouched else []
    return Result(
        score=0.999,
        episodes=len(parts[0].targets),
        parameters=1896,
        train_items=100 * budget,
        budget=budget,
        figures=figures,
        **dict(zip(("predictions", "disjoint"), digests, strict=False)),
    )


def _dataset(content: str) -> DatasetIdentity:
    return DatasetIdentity(
        name="quickdraw", digest=content, classes="c" * 32, item={}, code="f" * 32
    )


def _numerics(device: str) -> Numerics:
    return Numerics(dtype="float32", device=device, threads=1, engine="loop", torch="2.14")


def made_up(
    protocol: Protocol,
    key: str,
    skill: float,
    shift: int = 0,
    luck: int = 0,
    sure: bool = False,
) -> EpisodeResults:
    """Predictions of a cell: the same episodes for all of a protocol, guesses of its own."""
    episodes = np.random.default_rng([int(protocol.digest[:8], 16), shift])
    shape = (protocol.episodes, protocol.ways * protocol.queries)
    targets = episodes.integers(0, protocol.ways, shape)
    classes = targets + 5 * episodes.integers(0, 10, (len(targets), 1))
    own = np.random.default_rng([int(key[:8], 16), luck] if luck else int(key[:8], 16))
    right = own.random(shape) < skill
    predictions = np.where(right, targets, (targets + 1) % protocol.ways)
    if not sure:
        return EpisodeResults(targets, predictions, classes)
    confidence = own.integers(0, 26, shape, dtype=np.uint8)
    excess = own.integers(1, 60, shape, dtype=np.uint8)
    surprise = np.where(right, confidence, confidence + excess).astype(np.uint8)
    return EpisodeResults(targets, predictions, classes, surprise, confidence)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """An empty result folder to put made-up cells into."""
    return Results(tmp_path / "out")


@pytest.fixture
def make_results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Results]:
    """As `results`, as many as are asked for."""
    return lambda: Results(tmp_path_factory.mktemp("results"))


@pytest.fixture
def compare(results: Results, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Typed]:
    """Type `metabench compare`, where `results` is the result folder."""
    monkeypatch.setenv("METABENCH_OUT", str(results.store.root))

    def invoke(*args: str) -> Typed:
        return CliRunner().invoke(main, ["compare", *args], catch_exceptions=False)

    return invoke
