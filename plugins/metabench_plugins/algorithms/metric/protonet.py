"""Prototypical networks: a class is the mean of its support embeddings."""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import (
    Distance,
    class_means,
    class_membership,
    cosine_similarities,
    squared_distances,
)


class ProtoNetHyperparameters(Hyperparameters):
    distance: Annotated[
        Distance, Field(description="d, between a query and a prototype; cosine is 1 - cos")
    ] = "squared-euclidean"
    temperature: Annotated[
        float, Field(gt=0, description="distances are divided by it before the softmax")
    ] = 1.0


class ProtoNet(EmbeddingAlgorithm):
    """Prototypical networks.

    Jake Snell, Kevin Swersky, Richard Zemel, "Prototypical Networks for Few-shot Learning", 2017,
    https://arxiv.org/abs/1703.05175

    A class is represented by its prototype, the mean embedding of its support items, and a query is
    classified by a softmax over its negative distances to the prototypes. Training on episodes
    with more ways than at test makes the embedding better.

    Differs: the paper has no temperature (1 is the paper); its Omniglot recipe (60 ways, learning
    rate halved every 2,000 episodes, trained anew on training and validation classes) is that of
    the suite `reference-protonet`, and the default recipe here is shorter.
    """

    name = "protonet"
    family = "metric"
    reference = "Snell et al. 2017, arXiv:1703.05175"
    summary = "Classifies a query by its distance to the mean embedding of each class."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = ProtoNetHyperparameters
    recipe = Recipe(steps=2000, ways=20, queries=5, validate_every=500)

    hp: ProtoNetHyperparameters

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        embedded = support.items.data  # (B, S, D)
        prototypes = class_means(embedded, class_membership(support))  # (1), (B, N, D)
        return {"prototypes": prototypes}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        prototypes = state["prototypes"]
        if self.hp.distance == "cosine":
            distances = 1 - cosine_similarities(queries.data, prototypes)  # (B, Q, N)
        else:
            distances = squared_distances(queries.data, prototypes)  # (B, Q, N)
        return -distances / self.hp.temperature  # (2), before the softmax
