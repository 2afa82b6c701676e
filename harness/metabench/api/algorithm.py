"""What an algorithm plugin subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, Items, PyTree, Support, Targets
from metabench.api.phases import Episodic, Phase
from metabench.api.recipe import Hyperparameters, Recipe

Inference = Literal["inductive", "transductive"]
Output = Literal["logits", "scores", "normal", "tags"]
Equivariance = Literal["support-order", "class-labels"]


@dataclass(frozen=True)
class Problem:
    """The facts of a cell that an algorithm may build on.

    Attributes:
        item: what one item is.
        ways, shots: of the protocol's episodes.
        train_ways: of the episodes in training (equal to `ways` unless the recipe says otherwise).
        train_classes: classes of the meta-training split, rotations counted where the recipe or
            the protocol makes classes of them.
    """

    item: ItemSpec
    ways: int
    shots: int
    train_ways: int
    train_classes: int


class Algorithm(nn.Module, ABC):
    """A few-shot learner: trained in phases, adapted to support sets, asked for predictions.

    Everything works on a batch of B episodes. Override `build` to add layers (not `__init__`),
    `adapt` and `predict` always, `training_loss` or `training_step` where the default does not fit,
    `phases` where training is more than one episodic phase.

    What training changes has to be in parameters or (persistent) buffers: nothing else is in a
    checkpoint. `adapt` and `predict` change nothing: the model is locked, and compared, at test.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    family: ClassVar[str]
    reference: ClassVar[str]
    summary: ClassVar[str]
    inference: ClassVar[Inference] = "inductive"
    equivariant_to: ClassVar[frozenset[Equivariance]] = frozenset()
    output: ClassVar[Output] = "logits"
    float64: ClassVar[bool] = True
    """Whether it computes in float64 too, which checks to the last digits ask for."""
    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters
    recipe: ClassVar[Recipe] = Recipe()
    """How it is trained where a suite does not say."""

    hp: Any
    """The hyper-parameters, an instance of `hyperparameters`."""

    def __init__(self, backbone: Backbone, hp: Hyperparameters, problem: Problem) -> None:
        super().__init__()
        self.backbone = backbone
        self.hp = hp
        self.problem = problem
        self.build()

    def build(self) -> None:
        """Add parameters and buffers; `backbone`, `hp` and `problem` are there."""

    @classmethod
    def inference_mode(cls, hp: Hyperparameters) -> Inference:
        """The mode under these hyper-parameters; override where one of them changes it."""
        return cls.inference

    @classmethod
    def equivariances(cls, hp: Hyperparameters) -> frozenset[Equivariance]:
        """What it is equivariant to under these hyper-parameters; override where one matters."""
        return cls.equivariant_to

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """What the engine does to train it, in order. Default: one episodic phase."""
        return [Episodic(recipe)]

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """The scalar that a meta-step descends. Default: the cross-entropy of the queries."""
        state = self.adapt(batch.support, ctx)
        logits = self.predict(state, batch.queries, ctx)
        return query_cross_entropy(logits, batch.query_targets)

    def training_step(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """Leave the meta-gradient in the parameters' `.grad`; return a loss to be logged.

        The engine zeroes the gradients before and steps the optimiser after. Override it where
        no loss is descended (Reptile).
        """
        loss = self.training_loss(batch, ctx)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @abstractmethod
    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The inner loop: support sets in, a state out.

        Returns:
            a pytree of tensors, each with B as its first dimension, so that one episode can be
            cut out of it, saved and loaded.
        """

    @abstractmethod
    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        """Predictions (B, Q, ways) for queries, as `output` says (logits or scores)."""


def query_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy of (B, Q, ways) logits, padding left out."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.values.flatten(), reduction="none")
    if targets.mask is None:
        return losses.mean()
    mask = targets.mask.flatten()
    return (losses * mask).sum() / mask.sum()
