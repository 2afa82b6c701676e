"""Baseline++: a cosine classifier, in pre-training and in each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    Backbone,
    Batches,
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    Phase,
    PyTree,
    Recipe,
    Support,
    supervised_loss,
)
from metabench_plugins.algorithms.classes import class_membership, cosine_similarities
from metabench_plugins.algorithms.pretrained import has_weights

PRETRAINING_SCALE = 10.0
"""Of the cosines over the training classes; no hyper-parameter may reach a shared phase."""
SHORTEST = 1e-6
"""A weight is taken for no shorter than this: features that are all zero have no direction."""


class BaselinePPHyperparameters(Hyperparameters):
    head_scale: Annotated[
        float, Field(gt=0, description="what the cosines are multiplied by in a task")
    ] = 10.0
    head_steps: Annotated[int, Field(ge=0, description="gradient steps on the head")] = 100
    head_lr: Annotated[float, Field(gt=0, description="learning rate of the head")] = 0.01
    head_momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the head")] = 0.9


class CosineClassifier(nn.Module):
    """A backbone and a cosine classifier over all classes of the meta-training split."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.feature_dim, classes, bias=False)

    def forward(self, data: PyTree) -> Tensor:
        """Logits (n, classes) of items (n, ...), (1)."""
        features = F.normalize(self.backbone(data), dim=-1)
        return PRETRAINING_SCALE * F.linear(features, F.normalize(self.classifier.weight, dim=-1))


class BaselinePP(EmbeddingAlgorithm):
    """Baseline++ of "A Closer Look at Few-shot Classification".

    Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang, "A Closer Look at
    Few-shot Classification", 2019, https://arxiv.org/abs/1904.04232

    As `baseline`, but the classifier compares directions, in the training stage and in each task,
    which makes the features of a class vary less (section 3.2). With a feature z and a weight w_n
    for each class,

        logit of class n = scale cos(z, w_n)                                                (1)
        w = argmin of the mean cross-entropy of the support set, by gradient steps from     (2)
        w_n = the mean of the class's features, each of length 1                            (3)

    Differs: (3) and the whole support set in every step, where the authors start at random weights
    and go through batches of 4 in random order, 100 times; so nothing here depends on chance or on
    the order of the support set. The paper states no scale; the authors' code has 2, up to 200
    classes, or 10, and multiplies the cosines of each class by a length that it learns; here the
    scale is 10 and all lengths are 1, as in the paper. Their weight decay could change nothing but
    lengths, and is left out; their momentum is dampened by as much as it is large, so that it
    doesn't lengthen their steps as it does here; they augment the training images. Over a backbone
    without weights, such as `identity`, nothing is pre-trained.
    """

    name = "baseline++"
    family = "metric"
    reference = "Chen et al. 2019, arXiv:1904.04232"
    summary = "Pre-training with a cosine classifier, then another fitted on the support set."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = BaselinePPHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)

    hp: BaselinePPHyperparameters

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The training stage; shared with all that start from a cosine classifier."""
        if not has_weights(self.backbone):
            return []
        module = CosineClassifier(self.backbone, self.problem.train_classes)
        return [Batches(recipe, module, supervised_loss, shared=True, name="cosine-pretrain")]

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        weights = fit_cosine_head(support.items.data, class_membership(support), self.hp)
        return {"weights": weights}  # (2), (B, N, D)

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return self.hp.head_scale * cosine_similarities(queries.data, state["weights"])  # (1)


def fit_cosine_head(features: Tensor, member: Tensor, hp: BaselinePPHyperparameters) -> Tensor:
    """Cosine classifiers by gradient descent with momentum, B of them at once.

    Args:
        features: (B, S, D).
        member: (B, S, N) bool, whether an item is of a class; padding is of none.
        hp: scale, steps, learning rate, momentum.

    Returns:
        weights (B, N, D), which descended the mean cross-entropy of (1) from (3); the update is
        that of PyTorch's SGD.
    """
    features = F.normalize(features, dim=-1)
    wanted = member.to(features.dtype)
    # As in `baseline`, descent never leaves the span of the features: weights = shares^T features.
    share = wanted / wanted.sum(1, keepdim=True)  # (3)
    products = features @ features.mT  # (B, S, S)
    wanted = wanted / wanted.sum((1, 2), keepdim=True)
    real = wanted.sum(-1, keepdim=True)  # (B, S, 1), one in the number of items; 0 for padding
    speed = wanted.new_zeros(wanted.shape)
    scale, momentum, lr = hp.head_scale, hp.head_momentum, hp.head_lr
    for _ in range(hp.head_steps):
        along = products @ share  # (B, S, N), z . w_n
        length = (share * along).sum(1, keepdim=True).clamp_min(SHORTEST**2).sqrt()  # |w_n|
        logits = scale * along / length
        # The gradient of the mean cross-entropy with respect to the logits, and from there to the
        # weights: what would lengthen a weight changes no cosine, so it is taken out.
        error = logits.softmax(-1) * real - wanted
        lengthening = (error * logits).sum(1, keepdim=True) * share / length
        slope = (scale * error - lengthening) / length
        speed = slope.add(speed, alpha=momentum)
        share = share.sub(speed, alpha=lr)
    return share.mT @ features
