"""What the tests of training and evaluation share: made-up images, a tiny network, one fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.context import Context
from metabench.api.items import Items, PyTree, Support, flatten_sets, unflatten_sets
from metabench.api.recipe import Hyperparameters, Recipe
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.evaluate import Outcome, evaluate
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.trial import Trial
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol, Rotation
from metabench.episodes.source import EpisodeSource, protocol_key

CPU = torch.device("cpu")
IMAGE = ItemSpec("image", (1, 6, 6))
ITEMS = 12


class TinyNet(Backbone):
    """Two layers, with the two things that make training stateful: batch norm and dropout."""

    name = "tiny"

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)
        )
        self.feature_dim = 16

    def forward(self, data: Tensor) -> Tensor:
        features: Tensor = self.net(data)
        return features


class Nearest(EmbeddingAlgorithm):
    """The nearest class mean, of embeddings."""

    name = "nearest"

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        member = F.one_hot(support.targets.values, support.ways).float()  # (B, S, N)
        return {"means": member.mT @ support.items.data / member.sum(1).unsqueeze(-1)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return -(queries.data.unsqueeze(2) - state["means"].unsqueeze(1)).square().sum(-1)


class NearestRaw(Algorithm):
    """The same, which is handed raw items and embeds them itself."""

    name = "nearest-raw"

    def embedded(self, items: Items) -> Items:
        flat = self.backbone(flatten_sets(items.data))
        return Items(unflatten_sets(flat, items.data.shape[0]))

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        return Nearest.adapt(self, support._replace(items=self.embedded(support.items)), ctx)  # type: ignore[arg-type]

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return Nearest.predict(self, state, self.embedded(queries), ctx)  # type: ignore[arg-type]


def made_up_bank(classes: int, split: str) -> ClassBank:
    """Classes of 12 uint8 images: a pattern a class, with noise."""
    rng = np.random.default_rng([classes, len(split)])
    patterns = rng.integers(0, 256, (classes, 1, 1, 6, 6))
    images = patterns * 0.5 + rng.integers(0, 256, (classes, ITEMS, 1, 6, 6)) * 0.5
    data = images.reshape(-1, 1, 6, 6).astype(np.uint8)
    names = tuple(f"{split} {c}" for c in range(classes))
    return ClassBank(data, np.arange(classes + 1) * ITEMS, names, "made up", split)


@dataclass
class World:
    """Three splits of made-up images, and what the engine does on them."""

    banks: dict[str, ClassBank]
    protocol: Protocol

    Nearest = Nearest
    NearestRaw = NearestRaw
    image = IMAGE

    def turned(self, rotation: Rotation) -> World:
        """The same, evaluated with rotations."""
        return World(self.banks, self.protocol.model_copy(update={"rotation": rotation}))

    def make(
        self, kind: type[Algorithm] = Nearest, recipe: Recipe | None = None, seed: int = 0
    ) -> Any:
        recipe = recipe or Recipe()
        hp = Hyperparameters()
        blueprint = Blueprint(kind, hp, TinyNet, hp, recipe, self.protocol, seed)
        bank = training_bank(self.banks["train"], recipe, self.protocol)
        return blueprint.build(IMAGE, bank, CPU)

    def trial(self, recipe: Recipe, kind: type[Algorithm] = Nearest) -> Trial:
        hp = Hyperparameters()
        blueprint = Blueprint(kind, hp, TinyNet, hp, recipe, self.protocol, seed=0)
        return Trial(blueprint, IMAGE, self.banks, CPU)

    def data(self, recipe: Recipe, validate: Callable[[int], float] | None = None) -> TrainingData:
        bank = training_bank(self.banks["train"], recipe, self.protocol)
        return TrainingData(ItemStore(bank, IMAGE, CPU), self.protocol, validate)

    def store(self, split: str = "test") -> ItemStore:
        return ItemStore(self.banks[split], IMAGE, CPU)

    def source(self, split: str = "test") -> EpisodeSource:
        bank = self.banks[split]
        return EpisodeSource(bank, self.protocol.shape, protocol_key(bank, self.protocol))

    def evaluate(self, algorithm: Algorithm, episodes: int, split: str = "test") -> Outcome:
        return evaluate(algorithm, self.source(split), self.store(split), episodes, "test")

    def validator(self, algorithm: Algorithm) -> Callable[[int], float]:
        return lambda n: float(self.evaluate(algorithm, n, "validation").scores("accuracy").mean())


@pytest.fixture(scope="session")
def world() -> World:
    torch.set_num_threads(1)
    banks = {"train": made_up_bank(9, "train")}
    banks |= {split: made_up_bank(6, split) for split in ("validation", "test")}
    return World(banks, Protocol(ways=4, shots=2, queries=3))
