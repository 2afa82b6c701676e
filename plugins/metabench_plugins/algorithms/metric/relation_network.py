"""Relation networks: how alike a query and a class are is itself learnt."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    Context,
    EmbeddingAlgorithm,
    EpisodeBatch,
    Field,
    Hyperparameters,
    Items,
    PyTree,
    Recipe,
    Support,
    Targets,
    UsageError,
    query_cross_entropy,
)
from metabench_plugins.algorithms.classes import class_membership, class_sums

NUMBERS_AT_ONCE = 2**20
"""About how many numbers of pairs pass the relation module at once in evaluation.

4 MiB a tensor: larger ones are slower on a CPU, and a pair of 84 x 84 images has 1,600 numbers.
"""


class RelationNetworkHyperparameters(Hyperparameters):
    loss: Annotated[
        Literal["cross-entropy", "squared-error"],
        Field(description="softmax over classes, or squared error of sigmoids (the paper)"),
    ] = "cross-entropy"
    width: Annotated[int, Field(ge=1, description="channels of the relation module's blocks")] = 64
    hidden: Annotated[int, Field(ge=1, description="units between its two linear layers")] = 8


class RelationNetwork(EmbeddingAlgorithm):
    """Relation networks.

    Flood Sung, Yongxin Yang, Li Zhang, Tao Xiang, Philip H. S. Torr, Timothy M. Hospedales,
    "Learning to Compare: Relation Network for Few-Shot Learning", 2018,
    https://arxiv.org/abs/1711.06025

    A class is the sum of its support items' feature maps, and a small convolutional network, the
    relation module, scores a query's map laid over that of each class. Embedding and comparison are
    learnt together on episodes, instead of choosing a distance.

    Predictions are scores: with squared error they are the paper's relation scores in [0, 1], each
    class by itself; with cross-entropy they are unbounded.

    Differs: the default loss is cross-entropy over the classes, which learns faster than the
    paper's squared error (`loss = "squared-error"`). The relation module pools only while the map
    has two pixels a side, as backbones here end in smaller maps than the authors'; its batch norm
    keeps the usual running averages (the authors' code: those of the last batch), and its weights
    are PyTorch's defaults.
    """

    name = "relation-network"
    family = "metric"
    reference = "Sung et al. 2018, arXiv:1711.06025"
    summary = "Learns the comparison itself: a network scores pairs of query and class."
    equivariant_to = frozenset({"support-order", "class-labels"})
    output = "scores"
    hyperparameters: ClassVar[type[Hyperparameters]] = RelationNetworkHyperparameters
    recipe = Recipe(steps=800, ways=10, queries=15, lr=3e-3, schedule="cosine", validate_every=200)

    hp: RelationNetworkHyperparameters

    def build(self) -> None:
        if self.backbone.feature_map is None:
            raise UsageError(
                f"relation-network compares feature maps, and backbone {self.backbone.name} "
                "has none",
                "choose a convolutional backbone, such as conv4 or resnet12",
            )
        self.relation = RelationModule(self.backbone.feature_map, self.hp.width, self.hp.hidden)

    def embed(self, data: PyTree) -> Tensor:
        """(n, C, H, W) feature maps, f in the paper."""
        return self.backbone.forward_map(data)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        maps = support.items.data  # (B, S, C, H, W)
        return {"classes": class_sums(maps, class_membership(support))}  # (B, N, C, H, W)

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        values: Tensor = self.relation(state["classes"], queries.data)
        return values.sigmoid() if self.hp.loss == "squared-error" else values  # (B, Q, N)

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """Equation (2), or cross-entropy; support and queries are embedded as one batch."""
        support, queries = self.embed_episode(batch)
        scores = self.predict(self.adapt(support, ctx), queries, ctx)
        if self.hp.loss == "squared-error":
            return squared_error(scores, batch.query_targets)
        return query_cross_entropy(scores, batch.query_targets)


class RelationModule(nn.Module):
    """g in the paper: two convolutional blocks and two linear layers, a value for each pair."""

    def __init__(self, feature_map: tuple[int, int, int], width: int, hidden: int) -> None:
        super().__init__()
        channels, height, side = feature_map
        for _ in range(2):
            height, side = _halved(height, side)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width * height * side, hidden)
        self.value = nn.Linear(hidden, 1)

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Equation (1), before the sigmoid, for all pairs.

        Args:
            classes: (B, N, C, H, W) summed feature maps.
            queries: (B, Q, C, H, W) feature maps.

        Returns:
            (B, Q, N) how alike a query and a class are.
        """
        # A convolution of concatenated maps is the sum of two convolutions, each with its half of
        # the kernel: it is computed for N + Q maps an episode instead of for N x Q pairs.
        of_classes, of_queries = self.first.weight.chunk(2, dim=1)
        ours = _convolved(classes, of_classes, self.first.bias).unsqueeze(1)  # (B, 1, N, ...)
        theirs = _convolved(queries, of_queries, None).unsqueeze(2)  # (B, Q, 1, ...)
        if self.training:  # the moments of batch norm are those of all pairs
            return self._values(ours + theirs)
        queries_at_once = max(1, NUMBERS_AT_ONCE // ours.numel())
        parts = torch.split(theirs, queries_at_once, dim=1)
        return torch.cat([self._values(ours + part) for part in parts], dim=1)

    def _values(self, pairs: Tensor) -> Tensor:
        """(B, Q, N) from (B, Q, N, width, H, W): all behind the first convolution."""
        maps = _pooled(self.first_norm(pairs.flatten(0, 2)))  # (B*Q*N, width, H/2, W/2)
        maps = _pooled(self.second_norm(self.second(maps)))  # (B*Q*N, width, H/4, W/4)
        values: Tensor = self.value(F.relu(self.hidden(maps.flatten(1))))  # (B*Q*N, 1)
        return values.view(pairs.shape[:3])


def squared_error(scores: Tensor, targets: Targets) -> Tensor:
    """Mean squared error of (B, Q, N) scores to 1 for the true class, 0 for others; eq. (2)."""
    wanted = F.one_hot(targets.values, scores.shape[-1]).to(scores.dtype)
    errors = (scores - wanted).square().mean(-1)  # (B, Q)
    if targets.mask is None:
        return errors.mean()
    return (errors * targets.mask).sum() / targets.mask.sum()


def _convolved(maps: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """3 x 3 convolution of maps (B, n, C, H, W), padded."""
    convolved = F.conv2d(maps.flatten(0, 1), kernel, bias, padding=1)
    return convolved.view(*maps.shape[:2], *convolved.shape[1:])


def _pooled(maps: Tensor) -> Tensor:
    """2 x 2 max-pooling where there are two pixels, and ReLU (the two commute)."""
    return F.relu(F.max_pool2d(maps, 2) if min(maps.shape[-2:]) >= 2 else maps)


def _halved(height: int, width: int) -> tuple[int, int]:
    """The size of a map after `_pooled`."""
    return (height // 2, width // 2) if min(height, width) >= 2 else (height, width)
