"""What the benchmarks time: made-up items, and each registered algorithm as a cell would build it.

Items are random bytes: no time depends on what is drawn on an image, and nothing has to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import ItemSpec
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch
from metabench.api.recipe import Recipe
from metabench.clock.parts import Steps, steps_of
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.descent import Descends
from metabench.engine.feed import EpisodeFeed, TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.modes import EngineName, resolve_engine
from metabench.engine.train import is_shared, planned_phases
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.registry import Registry
from metabench.runner.resolve import settings_of

IMAGE = ItemSpec("image", (1, 28, 28))
CLASSES, ITEMS_A_CLASS = 100, 40
PROTOCOL = Protocol(ways=5, shots=1, queries=15, episodes=2)
EPISODES = 40
"""Test episodes of one evaluation."""

TIERED_IMAGE = ItemSpec("image", (3, 84, 84))
TIERED_ITEMS, TIERED_CLASSES = 448_695, 351
"""As many images as the training split of tieredImageNet has; its classes differ in size."""
MAPPED_ITEMS = (1000, 50_000, TIERED_ITEMS)


def made_up_bank(split: str, item: ItemSpec = IMAGE) -> ClassBank:
    """A split of random images, in memory."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (CLASSES * ITEMS_A_CLASS, *item.shape), dtype=np.uint8)
    offsets = np.arange(CLASSES + 1, dtype=np.int64) * ITEMS_A_CLASS
    return _bank(data, offsets, split)


def mapped_bank(folder: Path, items: int = TIERED_ITEMS) -> ClassBank:
    """A split of images of tieredImageNet's size, memory-mapped, all of it a hole in the file.

    Its classes are about as large as those of tieredImageNet, whose 448,695 images take 9.5 GB.
    """
    shape = (items, *TIERED_IMAGE.shape)
    path = folder / f"{items}.npy"
    with path.open("wb") as file:
        file.truncate(int(np.prod(shape)))
    data = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    classes = max(20, TIERED_CLASSES * items // TIERED_ITEMS)
    offsets = np.linspace(0, items, classes + 1).astype(np.int64)
    return _bank(data, offsets, "train")


def _bank(data: NDArray[Any], offsets: NDArray[np.int64], split: str) -> ClassBank:
    names = tuple(f"{split}-{number}" for number in range(len(offsets) - 1))
    return ClassBank(data, offsets, names, digest="0" * 32, split=split)


@dataclass(frozen=True)
class Subject:
    """A registered algorithm on a registered backbone, untrained, with their own defaults.

    Attributes:
        registry: where both come from.
        algorithm, backbone: their names.
        device: where it is computed.
    """

    registry: Registry
    algorithm: str
    backbone: str
    device: torch.device

    @cached_property
    def recipe(self) -> Recipe:
        """The algorithm's own, cut down to one step that nobody validates."""
        cls = self.registry.get("algorithm", self.algorithm).load()
        recipe: Recipe = cls.recipe
        one = {"steps": 1, "validate_every": 0, "select": "last", "refit": False}
        return recipe.model_copy(update=one)

    @cached_property
    def bank(self) -> ClassBank:
        """The meta-training split as it is trained on."""
        return training_bank(made_up_bank("train"), self.recipe, PROTOCOL)

    @cached_property
    def data(self) -> TrainingData:
        return TrainingData(ItemStore(self.bank, IMAGE, self.device), PROTOCOL)

    @cached_property
    def model(self) -> Algorithm:
        """The algorithm, built.

        Raises:
            UsageError: it does not work on this backbone, or not on these items.
        """
        algorithm = self.registry.get("algorithm", self.algorithm).load()
        entry = self.registry.get("backbone", self.backbone)
        return Blueprint(
            algorithm=algorithm,
            algorithm_hp=algorithm.hyperparameters(),
            backbone=entry.load(),
            backbone_hp=settings_of(entry),
            recipe=self.recipe,
            protocol=PROTOCOL,
            seed=0,
        ).build(IMAGE, self.bank, self.device)

    @property
    def order(self) -> int:
        """Of the outer gradient; 1 where there is no inner loop of ours."""
        return self.model.order if isinstance(self.model, GradientAlgorithm) else 1

    @property
    def engine(self) -> EngineName:
        """The engine that a run takes where nobody says which."""
        return resolve_engine("auto", self.device.type, self.order)

    def steps(self) -> Steps | None:
        """The first phase that is trained by steps; None where there is none.

        A shared one only where it has none of its own.
        """
        phases = planned_phases(self.model, self.recipe, seed=0)
        found = [p for p in phases if isinstance(p, Descends) and p.recipe.steps]
        found.sort(key=is_shared)
        return steps_of(self.model, found[0], phases, self.data, 0) if found else None

    def training_batch(self) -> tuple[EpisodeBatch, Callable[[], Context]]:
        """A meta-batch of training episodes, and how a context is made: one a call."""
        feed = EpisodeFeed(self.data, self.recipe, 0, "benchmark")
        numbers, batch = feed.batch(0)

        def context() -> Context:
            return Context("train", EpisodeRandom(feed.key, numbers, self.device), 0, 1)

        return batch, context

    def test_split(self) -> tuple[EpisodeSource, ItemStore]:
        """The protocol's episodes on a meta-test split, and its items."""
        bank = made_up_bank("test")
        source = EpisodeSource(bank, PROTOCOL.shape, protocol_key(bank, PROTOCOL))
        return source, ItemStore(bank, IMAGE, self.device)
