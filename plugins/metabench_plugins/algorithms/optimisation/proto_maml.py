"""Proto-MAML: MAML whose head starts, in each task, as that of a prototypical network."""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor, nn

from metabench import (
    Context,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    Items,
    PyTree,
    Recipe,
    Support,
    Targets,
    over_tasks,
)
from metabench_plugins.algorithms.classes import class_means, class_membership

Tensors = dict[str, Tensor]


class ProtoMAMLHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="inner-loop learning rate (alpha)")] = 0.1
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 3


class ProtoMAML(GradientAlgorithm):
    """Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn ...".

    ICLR 2020, https://arxiv.org/abs/1903.03096, section 3, "Proto-MAML". MAML's inner loop is
    strong but begins with a head that knows nothing of the task's classes. A prototypical network's
    logits are, but for what all classes share, those of a linear layer:
        -|z - c_k|^2 = 2 c_k . z - |c_k|^2 - |z|^2                                 (1)
    so the head of each task begins as that layer, with c_k the mean feature of class k's support
    items under the weights theta that all tasks begin with:
        W_k = 2 c_k,   b_k = -|c_k|^2                                              (2)
    Inner loop from phi = (theta, W, b), over backbone and head:
        phi <- phi - alpha * grad_phi L(phi; support)                              (3)
    Outer loop over theta, through (3) and through the prototypes in (2):
        min of the sum over tasks i of L(phi_i(theta); queries_i)                  (4)

    There is no head to be learnt, so classes can be renamed at will, and training may have other
    ways than the test.

    What differs:
    - The paper takes the inner gradients as constants (fo-Proto-MAML), to fit its images into
      memory; here is the second order. Both let the gradient go through (2).
    - The authors' code adapts neither scale nor shift of batch norm; here both are adapted. Its
      published settings begin with a pre-trained ResNet and 6 steps of .0054.
    - As in MAML: the loss is a mean; batch norm by the support set's moments, the authors' default.
    """

    name = "proto-maml"
    reference = "Triantafillou et al. 2020, arXiv:1903.03096"
    summary = "MAML whose head starts, in each task, at the prototypes of its classes."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = ProtoMAMLHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)

    def build(self) -> None:
        # Each task puts its own in this one's place, which is why it isn't trained.
        self.head = nn.Linear(self.backbone.feature_dim, self.problem.ways).requires_grad_(False)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        own: Tensors = dict(self.named_parameters())
        buffers, mode = self.norm_buffers(), self.support_mode(ctx)

        def one_task(data: PyTree, labels: Tensor, mask: Tensor | None) -> PyTree:
            features, _ = self.features(buffers, data, mode)  # (S, D)
            start = own | prototypical_head(features, labels, mask, support.ways)
            phi, moments, _ = self.descend(start, (data, labels, mask), ctx)  # (3)
            return self.task_state(phi, moments, data)

        return over_tasks(one_task, support.items.data, support.targets.values, support.items.mask)


def prototypical_head(features: Tensor, labels: Tensor, mask: Tensor | None, ways: int) -> Tensors:
    """(2) of one task: weights (N, D) and biases (N,), of features (S, D) and labels (S,)."""
    items = Items(features[None], None if mask is None else mask[None])
    member = class_membership(Support(items, Targets(labels[None]), ways))
    means = class_means(features[None], member)[0]  # c, (N, D)
    return {"head.weight": 2 * means, "head.bias": -means.square().sum(-1)}
