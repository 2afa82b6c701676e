"""Meta-model: one backbone under the classifiers of a fixed set of training tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import (
    Backbone,
    Batches,
    Context,
    Field,
    Hyperparameters,
    ItemBatch,
    Phase,
    PyTree,
    Recipe,
    UsageError,
)
from metabench_plugins.algorithms.pretrained import has_weights
from metabench_plugins.algorithms.transfer.baseline import Baseline, BaselineHyperparameters


class MetaModelHyperparameters(BaselineHyperparameters):
    tasks: Annotated[
        int, Field(ge=1, le=100_000, description="training tasks, each with its own classifier")
    ] = 1000


class TaskClassifiers(nn.Module):
    """A backbone and T linear classifiers on it.

    Args:
        backbone: g.
        tasks: (T, N) ids of the training classes that a task tells apart; the place is the label.
    """

    tasks: Tensor

    def __init__(self, backbone: Backbone, tasks: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.Linear(backbone.feature_dim, tasks.numel())
        self.register_buffer("tasks", tasks)

    def forward(self, data: PyTree) -> Tensor:
        """Logits (n, T, N) of items (n, ...) under each task's classifier."""
        logits: Tensor = self.heads(self.backbone(data)).view(-1, *self.tasks.shape)
        return logits


class MetaModel(Baseline):
    """A meta-model: multi-task learning as meta-training.

    Haoxiang Wang, Han Zhao, Bo Li, "Bridging Multi-Task Learning and Meta-Learning: Towards
    Efficient Training and Effective Adaptation", 2021, https://arxiv.org/abs/2106.09017, its
    multi-task learning with a head for each task and fine-tuning of the head at test.

    T tasks of N classes each are drawn once, and stay. On the backbone g each has a linear
    classifier of its own, W_t and b_t; y_t(x) is the label of x in task t:
        L_t = mean over the items x of its classes of cross-entropy(W_t g(x) + b_t, y_t(x))    (1)
        meta-loss = mean over t of L_t                                                         (2)
    The meta-optimiser, AdamW with a linear warm-up and then a linear decay, descends (2) in g and
    all W_t, b_t. At test these are dropped, and a new classifier is fitted to the support set's
    features, as in `baseline`.

    Each task needs its own classifier. As labels are arbitrary, one that all tasks shared would
    meet each class under each label, and the uniform prediction, with a loss of log N, is all that
    it can learn.

    Differs: (2) is estimated from a batch of items of all classes a step. Each item counts in all
    tasks that its class is in, and tasks without an item in the batch are left out of its mean.
    Where classes are equally large, the estimate of (1) has no bias, given how many of a task's
    items there are; that of (2), a sum divided by the number of tasks that have some, is biased as
    far as that number and the losses vary together, which is little with many tasks. The paper
    draws tasks, and its tasks have few items each.
    """

    name = "meta-model"
    family = "transfer"
    reference = "Wang et al. 2021, arXiv:2106.09017"
    summary = "A backbone trained under a fixed set of tasks, each with a classifier of its own."
    hyperparameters: ClassVar[type[Hyperparameters]] = MetaModelHyperparameters
    recipe = Recipe(
        steps=4000,
        batch_size=64,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        warmup=200,
        schedule="linear",
    )

    hp: MetaModelHyperparameters

    def build(self) -> None:
        ways, classes = self.problem.train_ways, self.problem.train_classes
        if ways > classes:
            raise UsageError(
                f"tasks of {ways} ways can't be drawn from {classes} training classes",
                "set fewer ways in the recipe",
            )

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The meta-training; none over a backbone without weights."""
        if not has_weights(self.backbone):
            return []
        order = torch.rand(self.hp.tasks, self.problem.train_classes).argsort(1)
        module = TaskClassifiers(self.backbone, order[:, : self.problem.train_ways].contiguous())
        return [Batches(recipe, module, meta_loss, name="meta-model")]


def meta_loss(module: TaskClassifiers, batch: ItemBatch, ctx: Context) -> Tensor:
    """(2) of the tasks that have items in a batch."""
    assert batch.classes is not None  # a phase with labels
    return mean_over_tasks(module(batch.data), batch.classes, module.tasks)


def mean_over_tasks(logits: Tensor, classes: Tensor, tasks: Tensor) -> Tensor:
    """The mean, over tasks, of the mean cross-entropy of a task's items.

    Args:
        logits: (n, T, N).
        classes: (n,) ids of the items' training classes.
        tasks: (T, N) ids of the tasks' classes.
    """
    label = tasks == classes.view(-1, 1, 1)  # (n, T, N)
    losses = (logits.logsumexp(-1, keepdim=True) - logits) * label
    count = label.sum((0, 2))  # (T,)
    of_task = losses.sum((0, 2)) / count.clamp(min=1)  # (1)
    return of_task.sum() / (count > 0).sum().clamp(min=1)  # (2)
