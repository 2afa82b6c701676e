"""Putting an algorithm together: backbone and algorithm from their classes, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metabench.api.algorithm import Algorithm, Problem
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.recipe import Hyperparameters, Recipe
from metabench.engine.norm import convert
from metabench.engine.numerics import seed_all
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
from metabench.errors import UsageError


@dataclass(frozen=True)
class Blueprint:
    """All that decides an algorithm before its training, but for the data."""

    algorithm: type[Algorithm]
    algorithm_hp: Hyperparameters
    backbone: type[Backbone]
    backbone_hp: Hyperparameters
    recipe: Recipe
    protocol: Protocol
    seed: int

    def build(self, item: ItemSpec, bank: ClassBank, device: torch.device | str) -> Algorithm:
        """The untrained algorithm on a device.

        The backbone's weights depend on the backbone and the seed alone, so that two algorithms
        on one backbone start from the same weights and can share its pre-training.

        Args:
            item: what one item is.
            bank: the meta-training split as it is trained on (rotated where rotations are classes).
            device: where the parameters live; `meta` for a look at shapes only.
        """
        problem = Problem(
            item=item,
            ways=self.protocol.ways,
            shots=self.protocol.shots,
            train_ways=self.recipe.ways or self.protocol.ways,
            train_classes=bank.n_classes,
        )
        with torch.device("meta" if torch.device(device).type == "meta" else "cpu"):
            seed_all("backbone", self.seed)
            try:
                backbone = self.backbone(item, self.backbone_hp)
            except ValueError as error:
                raise UsageError(f"backbone {self.backbone.name}: {error}") from error
            convert(backbone)
            seed_all("algorithm", self.seed)
            algorithm = self.algorithm(backbone, self.algorithm_hp, problem)
            convert(algorithm)
        if torch.device(device).type == "meta":
            return algorithm
        # Channels last: the same numbers, and convolutions of small images take a tenth less.
        return algorithm.to(device).to(memory_format=torch.channels_last)


def training_bank(bank: ClassBank, recipe: Recipe, protocol: Protocol) -> ClassBank:
    """The meta-training split as it is trained on: rotations as classes where asked for."""
    turned = recipe.augmentation == "rotation-classes" or protocol.rotation is Rotation.CLASSES
    return bank.rotated() if turned and bank.views == 1 else bank


def training_shape(recipe: Recipe, protocol: Protocol) -> EpisodeShape:
    """The shape of training episodes: the recipe's, else the protocol's.

    Where the recipe makes classes of rotations, a class is not turned at random as well: it and its
    neighbour could become the same pictures under two labels.
    """
    turned = recipe.augmentation == "rotation-classes"

    def first(value: int | None, default: int) -> int:
        return default if value is None else value

    return EpisodeShape(
        ways=first(recipe.ways, protocol.ways),
        shots=first(recipe.shots, protocol.shots),
        queries=first(recipe.queries, protocol.queries),
        rotation=Rotation.CLASSES if turned else protocol.rotation,
    )
