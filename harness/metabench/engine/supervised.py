"""Supervised pre-training on the training classes, shared by all rows that stand on it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metabench.api.algorithm import Problem
from metabench.api.backbone import Backbone
from metabench.api.context import Context
from metabench.api.items import ItemBatch, PyTree
from metabench.api.phases import Batches
from metabench.api.recipe import Recipe


class SupervisedClassifier(nn.Module):
    """A backbone and a linear classifier over all classes of the meta-training split."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.feature_dim, classes)

    def forward(self, data: PyTree) -> Tensor:
        """Logits (n, classes) of items (n, ...)."""
        logits: Tensor = self.classifier(self.backbone(data))
        return logits


def supervised_loss(module: nn.Module, batch: ItemBatch, ctx: Context) -> Tensor:
    """Cross-entropy over the training classes' global ids."""
    assert batch.classes is not None  # a phase with labels
    return F.cross_entropy(module(batch.data), batch.classes)


def pretraining(backbone: Backbone, problem: Problem, recipe: Recipe) -> Batches:
    """The shared phase that trains `backbone` on the training classes.

    Every algorithm that asks for it with the same backbone and recipe uses the same weights.
    """
    module = SupervisedClassifier(backbone, problem.train_classes)
    return Batches(recipe, module, supervised_loss, shared=True)
