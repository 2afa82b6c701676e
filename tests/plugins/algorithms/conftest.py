"""What the tests of algorithms share: real drawings, tiny networks, the engine in one-liners.

The fixture `lab` holds it all; see `Lab`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.context import Context, EpisodeRandom, Stage
from metabench.api.items import EpisodeBatch, Items, Support, Targets, tree_map
from metabench.api.recipe import Hyperparameters, Recipe
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.evaluate import evaluate
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore, training_batch
from metabench.engine.train import train
from metabench.engine.verify import depends_on_other_queries
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters

torch.set_num_threads(1)

CPU = torch.device("cpu")
HERE = Path(__file__).resolve()
DATA = Path(os.environ.get("METABENCH_DATA") or HERE.parents[4] / "shared" / "data")
DRAWINGS = DATA / "quickdraw" / "quickdraw_345x100_28.npz"
SPLITS = {"train": (0, 241), "validation": (241, 293), "test": (293, 345)}
IMAGE = ItemSpec("image", (1, 28, 28))


class SmoothHyperparameters(Hyperparameters):
    """None to choose."""


class SmoothConv(Backbone):
    """Two strided convolutions of 4 channels, batch norm, tanh: differentiable everywhere."""

    name = "smooth-conv"
    hyperparameters = SmoothHyperparameters

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, stride=3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Flatten(),
        )
        self.feature_dim = 4 * 3 * 3
        self.feature_map = (4, 3, 3)

    def forward_map(self, data: Tensor) -> Tensor:
        maps: Tensor = self.net[:-1](data)
        return maps

    def forward(self, data: Tensor) -> Tensor:
        features: Tensor = self.net(data)
        return features


class TypedStore(ItemStore):
    """An item store that gathers in a chosen precision."""

    def __init__(self, bank: ClassBank, item: ItemSpec, dtype: torch.dtype) -> None:
        super().__init__(bank, item, CPU)
        self.dtype = dtype

    def gather_beside(self, *args: Any) -> Any:
        data, ids = super().gather_beside(*args)
        return tree_map(lambda x: x.to(self.dtype), data), ids


@dataclass
class Lab:
    """A problem of line drawings, and what one does with an algorithm on it.

    Attributes:
        banks: train, validation and test, 28 x 28 uint8 images.
        real: whether they are the quickdraw drawings, or shapes made up because those are missing.
        protocol: of the episodes; copy it with `lab.with_protocol(shots=5)`.
        dtype: of items and parameters.
    """

    banks: dict[str, ClassBank]
    real: bool
    protocol: Protocol = field(default_factory=lambda: Protocol(ways=5, shots=1, queries=5))
    dtype: torch.dtype = torch.float32

    SmoothConv = SmoothConv

    def with_protocol(self, **changes: Any) -> Lab:
        return Lab(self.banks, self.real, self.protocol.model_copy(update=changes), self.dtype)

    def double(self) -> Lab:
        """The same in float64."""
        return Lab(self.banks, self.real, self.protocol, torch.float64)

    def make(
        self,
        kind: type[Algorithm],
        hp: Hyperparameters | None = None,
        *,
        backbone: type[Backbone] = Conv4,
        backbone_hp: Hyperparameters | None = None,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> Algorithm:
        """An untrained algorithm, by default over a conv4 of 8 channels with strides."""
        if backbone_hp is None:
            narrow = backbone is Conv4
            backbone_hp = (
                Conv4Hyperparameters(width=8, downsample="stride")
                if narrow
                else backbone.hyperparameters()
            )
        recipe = recipe or kind.recipe
        blueprint = Blueprint(
            kind, hp or kind.hyperparameters(), backbone, backbone_hp, recipe, self.protocol, seed
        )
        bank = training_bank(self.banks["train"], recipe, self.protocol)
        algorithm = blueprint.build(IMAGE, bank, CPU).to(self.dtype).eval()
        # One layout for all: checks to the last digits compare with code that knows no other.
        return algorithm.to(memory_format=torch.contiguous_format)

    def store(self, split: str = "test") -> ItemStore:
        return TypedStore(self.banks[split], IMAGE, self.dtype)

    def source(self, split: str = "test") -> EpisodeSource:
        bank = self.banks[split]
        return EpisodeSource(bank, self.protocol.shape, protocol_key(bank, self.protocol))

    def batch(self, episodes: int = 2, split: str = "test") -> EpisodeBatch:
        """The first episodes of a split, with their query targets."""
        return training_batch(
            self.source(split).draw(range(episodes)), self.store(split), self.protocol.ways
        )

    def context(self, stage: Stage = "test", episodes: int = 2, **where: Any) -> Context:
        key = protocol_key(self.banks["test"], self.protocol)
        return Context(stage, EpisodeRandom(key, list(range(episodes))), **where)

    def logits(
        self, algorithm: Algorithm, support: Support, queries: Items, stage: Stage = "test"
    ) -> Tensor:
        """(B, Q, ways): adapt, then predict; raw items in."""
        ctx = self.context(stage, len(support.targets.values))
        embed_sets: Callable[[Items], Items] | None = getattr(algorithm, "embed_sets", None)
        if embed_sets is not None:
            support, queries = (
                support._replace(items=embed_sets(support.items)),
                embed_sets(queries),
            )
        return algorithm.predict(algorithm.adapt(support, ctx), queries, ctx)

    def train(self, algorithm: Algorithm, recipe: Recipe, seed: int = 0) -> None:
        """Train in place, with validation if the recipe asks for it."""
        bank = training_bank(self.banks["train"], recipe, self.protocol)

        def validate(episodes: int) -> float:
            store, source = self.store("validation"), self.source("validation")
            return float(
                evaluate(algorithm, source, store, episodes, "validation").scores("accuracy").mean()
            )

        data = TrainingData(TypedStore(bank, IMAGE, self.dtype), self.protocol, validate)
        train(algorithm, recipe, data, seed)

    def accuracies(self, algorithm: Algorithm, episodes: int) -> np.ndarray:
        """(episodes,) accuracy in each of the first test episodes."""
        return evaluate(algorithm, self.source(), self.store(), episodes, "test").scores("accuracy")

    def dependence(self, algorithm: Algorithm, episodes: int = 2) -> str:
        """How predictions depend on the other queries; empty if they do not (inductive)."""
        return depends_on_other_queries(algorithm, self.source(), self.store(), episodes)

    def shuffle_support(self, support: Support, seed: int = 0) -> Support:
        """The same support sets, their items in another order."""
        size = support.targets.values.shape[1]
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        items = Items(tree_map(lambda x: x[:, order], support.items.data))
        return Support(items, Targets(support.targets.values[:, order]), support.ways)

    def relabel(self, support: Support) -> Support:
        """The same support sets, class c called c + 1 (and the last 0)."""
        renamed = (support.targets.values + 1) % support.ways
        return Support(support.items, Targets(renamed), support.ways)

    def gain(
        self, untrained: Algorithm, trained: Algorithm, episodes: int = 200
    ) -> tuple[float, float]:
        """(mean, t statistic) of the paired difference in accuracy over the same test episodes."""
        difference = self.accuracies(trained, episodes) - self.accuracies(untrained, episodes)
        error = difference.std(ddof=1) / np.sqrt(episodes)
        return float(difference.mean()), float(difference.mean() / error)


def _drawn_shapes(classes: int, items: int) -> np.ndarray:
    """(classes, items, 28, 28) uint8: a random polygon a class, its corners jittered per item."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(4, 24, (classes, 1, 5, 2)) + rng.normal(0, 1, (classes, items, 5, 2))
    along = np.linspace(0, 1, 24)[:, None]
    ends = np.roll(corners, -1, axis=2)
    points = corners[..., None, :] * (1 - along) + ends[..., None, :] * along
    row, column = np.moveaxis(points.round().astype(int).clip(0, 27), -1, 0)
    images = np.zeros((classes, items, 28, 28), np.uint8)
    c, i = np.ogrid[:classes, :items]
    images[c[..., None, None], i[..., None, None], row, column] = 255
    return images


@pytest.fixture(scope="session")
def lab() -> Lab:
    real = DRAWINGS.exists()
    if real:
        with np.load(DRAWINGS) as archive:
            images, names = archive["images"], archive["classes"].tolist()
    else:
        images, names = _drawn_shapes(345, 40), [f"shape {c:03}" for c in range(345)]
    items = images.shape[1]
    banks = {}
    for split, (first, last) in SPLITS.items():
        data = np.ascontiguousarray(images[first:last]).reshape(-1, 1, 28, 28)
        offsets = np.arange(last - first + 1) * items
        banks[split] = ClassBank(data, offsets, tuple(names[first:last]), "drawings", split)
    return Lab(banks, real)


@pytest.fixture(scope="session")
def real_lab(lab: Lab) -> Lab:
    """The lab, for tests of what is learnt from real drawings."""
    if not lab.real:
        pytest.skip(f"the drawings are not at {DRAWINGS}")
    return lab


@pytest.fixture(scope="session")
def easyfsl_predicts() -> Callable[..., Tensor]:
    """`easyfsl_predicts(method, support, labels, queries, **settings)` -> (Q, N) scores.

    `method` is a class of `easyfsl.methods` by name. Embeddings support (S, D) and queries (Q, D)
    are handed to it as they are, its backbone being the identity, and labels (S,) are class ids.
    Settings go to the class. Each call makes a new one: they keep what they saw.
    """
    methods = pytest.importorskip(
        "easyfsl.methods", reason="easyfsl is not installed", exc_type=ImportError
    )

    def predicts(
        method: str, support: Tensor, labels: Tensor, queries: Tensor, **settings: Any
    ) -> Tensor:
        classifier = getattr(methods, method)(nn.Identity(), **settings)
        classifier.eval()
        with torch.no_grad():
            # Copies, as some write on what they were given.
            classifier.process_support_set(support.clone(), labels.clone())
            scores: Tensor = classifier(queries.clone())
        return scores.detach()

    return predicts
