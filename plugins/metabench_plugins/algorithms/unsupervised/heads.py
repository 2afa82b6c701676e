"""What stands on features that were learnt without labels: six heads, and what each learns of."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import (
    Backbone,
    Context,
    EmbeddingAlgorithm,
    Episodic,
    Field,
    Hyperparameters,
    Items,
    ItemSpec,
    Phase,
    PyTree,
    Recipe,
    Support,
    UsageError,
)
from metabench_plugins.algorithms.classes import class_means, class_membership, squared_distances
from metabench_plugins.algorithms.closed_form.linear_head import ridge_coefficients
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.lstm import LSTM, LSTMHyperparameters
from metabench_plugins.backbones.mlp import MLP, MLPHyperparameters


class HeadHyperparameters(Hyperparameters):
    head: Annotated[
        Literal["centroid", "ridge", "mlp", "cnn", "rnn", "maml"],
        Field(description="what classifies the features; all but the first two are meta-trained"),
    ] = "centroid"
    penalty: Annotated[
        float, Field(gt=0, description="of ridge: weight of the squared norm, against a sum")
    ] = 10.0
    width: Annotated[
        int, Field(ge=1, le=65_536, description="units of mlp, maml and rnn, channels of cnn")
    ] = 64
    row: Annotated[int, Field(ge=1, le=65_536, description="features that rnn reads at a step")] = 8
    inner_lr: Annotated[float, Field(gt=0, description="inner-loop learning rate of maml")] = 0.1
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps of maml")] = 5


class UnsupervisedFeatures(EmbeddingAlgorithm):
    """Features learnt without labels, then left alone, and a head that classifies them.

    With the features z of an item, of the heads
        - `centroid` compares z with the class means of the support set, by squared distance;
        - `ridge` is ridge regression of one-hot labels on z, with an intercept:
              min over W, b of the sum over the support set of |W z + b - y|^2 + penalty |W|^2   (1)
        - `mlp`, `cnn` and `rnn` are networks g, and g(z) is compared with class means. z is a
          vector, a map, or a vector cut into rows that are read one after the other;
        - `maml` is MAML over a network of one hidden layer and a linear classifier.
    What labels are used for: those of the support set by all heads, and nothing else is adapted to
    it but class means, (1), or MAML's network; those of the training classes by the last four
    alone, to meta-train g, or MAML's initialisation, on episodes. The features never see one.

    A subclass says what the features are: `build_features`, `code`, `code_map` and `fitting`.
    """

    family = "unsupervised"
    output = "scores"
    equivariant_to = frozenset({"support-order", "class-labels"})
    recipe = Recipe(steps=2000, batch_size=64, queries=5, validate_every=500)

    hp: Any
    code_dim: int
    """K of the features (n, K) that `code` returns; set it in `build_features`."""
    map_shape: tuple[int, int, int] | None
    """(C, H, W) of what `code_map` returns, None where there is none; likewise."""

    @abstractmethod
    def build_features(self) -> None:
        """Add what the features are made of beside the backbone."""

    @abstractmethod
    def code(self, data: PyTree) -> Tensor:
        """Features (n, K) of items (n, ...)."""

    @abstractmethod
    def code_map(self, data: PyTree) -> Tensor:
        """Features (n, C, H, W) of items (n, ...), where there is a `map_shape`."""

    @abstractmethod
    def fitting(self, recipe: Recipe) -> list[Phase]:
        """The phases that fit the features, without labels."""

    @classmethod
    def equivariances(cls, hp: Any) -> frozenset[Literal["support-order", "class-labels"]]:
        """MAML's classifier is learnt, class by class."""
        return cls.equivariant_to - {"class-labels"} if hp.head == "maml" else cls.equivariant_to

    def build(self) -> None:
        self.build_features()
        self.body = self._body()
        self.learner: MAML | None = None
        if self.hp.head == "maml":
            vector = ItemSpec("vector", (self.code_dim,))
            hp = MAMLHyperparameters(inner_lr=self.hp.inner_lr, inner_steps=self.hp.inner_steps)
            network = MLP(vector, MLPHyperparameters(hidden=(self.hp.width,)))
            self.learner = MAML(network, hp, dataclasses.replace(self.problem, item=vector))

    def _body(self) -> Backbone | None:
        """The network g of a head that has one."""
        width = self.hp.width
        if self.hp.head == "mlp":
            vector = ItemSpec("vector", (self.code_dim,))
            return MLP(vector, MLPHyperparameters(hidden=(width, width)))
        if self.hp.head == "rnn":
            rows = ItemSpec("image", (1, math.ceil(self.code_dim / self.hp.row), self.hp.row))
            return LSTM(rows, LSTMHyperparameters(hidden=width))
        if self.hp.head != "cnn":
            return None
        if self.map_shape is None:
            raise UsageError(
                f"{self.name} with head = 'cnn' needs maps, and backbone {self.backbone.name} of "
                f"{' x '.join(map(str, self.problem.item.shape))} items gives it none",
                "choose a backbone with maps, such as conv4 or resnet12, or another head",
            )
        maps = ItemSpec("image", self.map_shape)
        return Conv4(maps, Conv4Hyperparameters(width=width, downsample="stride"))

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The features, and then the head on episodes, if there is something to meta-train."""
        learns = self.body is not None or self.learner is not None
        return [*self.fitting(recipe), *([Episodic(recipe)] if learns else [])]

    def train(self, mode: bool = True) -> UnsupervisedFeatures:
        """The features stay as they are at test while a head is trained on them."""
        super().train(mode)
        self.backbone.eval()
        return self

    def embed(self, data: PyTree) -> Tensor:
        """(n, D) features, or g of them."""
        with torch.no_grad():
            found = self.code_map(data) if self.hp.head == "cnn" else self.code(data)
        if self.hp.head == "rnn":
            padded = F.pad(found, (0, -self.code_dim % self.hp.row))
            found = padded.reshape(len(padded), 1, -1, self.hp.row)  # (n, 1, T, row)
        return found if self.body is None else self.body(found)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        if self.learner is not None:
            return self.learner.adapt(support, ctx)
        member, embedded = class_membership(support), support.items.data  # (B, S, N), (B, S, D)
        if self.hp.head == "ridge":
            weight, bias = ridge(embedded, member, self.hp.penalty)
            return {"weight": weight, "bias": bias}
        return {"centroids": class_means(embedded, member)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        if self.learner is not None:
            return self.learner.predict(state, queries, ctx)
        if self.hp.head == "ridge":
            scores: Tensor = queries.data @ state["weight"].mT + state["bias"].unsqueeze(1)
            return scores
        return -squared_distances(queries.data, state["centroids"])


def ridge(features: Tensor, member: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(1): weights (B, N, D) and intercepts (B, N), computed in float64.

    An intercept without a penalty is what makes both means meet: it is taken out of both first.

    Args:
        features: (B, S, D).
        member: (B, S, N) bool, one-hot but for padding, which is of no class.
        penalty: of the squared norm of the weights.
    """
    real = member.any(-1, keepdim=True)  # (B, S, 1)
    count = real.sum(1, keepdim=True)
    known, labels = torch.where(real, features.double(), 0), member.double()
    middle, share = known.sum(1, keepdim=True) / count, labels.sum(1, keepdim=True) / count
    known, labels = torch.where(real, known - middle, 0), torch.where(real, labels - share, 0)
    weight = ridge_coefficients(known @ known.mT, labels, penalty).mT @ known  # (B, N, D)
    bias = share - middle @ weight.mT  # (B, 1, N)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return weight.to(dtype), bias.squeeze(1).to(dtype)
