"""The transfer baseline: a linear classifier on a frozen, supervised backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    Phase,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.pretrained import pretrained


class BaselineHyperparameters(Hyperparameters):
    head_steps: Annotated[int, Field(ge=0, description="gradient steps on the head")] = 100
    head_lr: Annotated[float, Field(gt=0, description="learning rate of the head")] = 0.01
    head_momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the head")] = 0.9
    head_weight_decay: Annotated[
        float, Field(ge=0, description="weight decay of the head, its bias included")
    ] = 0.001


class Baseline(EmbeddingAlgorithm):
    """Baseline of "A Closer Look at Few-shot Classification".

    Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang, "A Closer Look at
    Few-shot Classification", 2019, https://arxiv.org/abs/1904.04232

    The backbone is trained to classify all training classes, without episodes, and then left
    alone. For each task a new linear classifier is fitted on the support set's features, which are
    used as they are, not normalised (section 3.2).

    Differs: the authors fit the head by 100 epochs of batches of 4 in random order, from random
    weights; here every step takes the whole support set, and the head starts at zero. The problem
    is convex, so both go towards the same head, and this one draws no random numbers and doesn't
    depend on the order of the support set. The authors' momentum is dampened by as much, so that it
    doesn't lengthen their steps as it does here; they augment the training images.
    """

    name = "baseline"
    family = "transfer"
    reference = "Chen et al. 2019, arXiv:1904.04232"
    summary = "Supervised pre-training, then a linear head fitted on the support set."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = BaselineHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)

    hp: BaselineHyperparameters

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The training stage of section 3.2, shared with all that stand on the same."""
        return pretrained(self.backbone, self.problem, recipe)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The fine-tuning stage of section 3.2."""
        weight, bias = fit_head(support.items.data, class_membership(support), self.hp)
        return {"weight": weight, "bias": bias}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        logits: Tensor = queries.data @ state["weight"].mT + state["bias"].unsqueeze(1)
        return logits  # (B, Q, N)


def fit_head(
    features: Tensor, member: Tensor, hp: BaselineHyperparameters
) -> tuple[Tensor, Tensor]:
    """Softmax regression by gradient descent with momentum, B of them at once.

    Args:
        features: (B, S, D).
        member: (B, S, N) bool, whether an item is of a class; padding is of none.
        hp: steps, learning rate, momentum, weight decay.

    Returns:
        weights (B, N, D) and biases (B, N). What is descended is the mean cross-entropy of the
        items plus weight decay / 2 times the squared norm; the update is that of PyTorch's SGD.
    """
    batch, items, ways = member.shape
    wanted = member.to(features.dtype)
    real = wanted.sum(-1, keepdim=True)  # (B, S, 1), 0 for padding
    count = real.sum(1, keepdim=True)  # (B, 1, 1)
    real, wanted = real / count, wanted / count
    # From zero, descent never leaves the span of the features: weights = shares^T features. A step
    # on the shares costs S x S x N instead of S x D x N, and D may be thousands.
    products = features @ features.mT  # (B, S, S)
    share, bias = wanted.new_zeros(batch, items, ways), wanted.new_zeros(batch, 1, ways)
    share_speed, bias_speed = share, bias
    momentum, decay, lr = hp.head_momentum, hp.head_weight_decay, hp.head_lr
    for _ in range(hp.head_steps):
        logits = torch.baddbmm(bias, products, share)
        # The gradient of the mean cross-entropy with respect to the logits, (B, S, N).
        error = logits.softmax(-1) * real - wanted
        bias_slope = error.sum(1, keepdim=True).add(bias, alpha=decay)
        share_speed = error.add(share, alpha=decay).add(share_speed, alpha=momentum)
        bias_speed = bias_slope.add(bias_speed, alpha=momentum)
        share, bias = share.sub(share_speed, alpha=lr), bias.sub(bias_speed, alpha=lr)
    return share.mT @ features, bias.squeeze(1)
