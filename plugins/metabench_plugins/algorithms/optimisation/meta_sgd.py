"""Meta-SGD: MAML that learns the inner learning rate of each weight too."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from metabench import Field, GradientAlgorithm, GradientHyperparameters, Recipe

Tensors = dict[str, Tensor]


class MetaSGDHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[
        float, Field(gt=0, description="where every weight's learning rate (alpha) starts")
    ] = 0.4
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 1


class MetaSGD(GradientAlgorithm):
    """Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

    https://arxiv.org/abs/1707.09835, section 3.1 and Algorithm 1. The inner learning rate is a
    vector as long as the weights, and is meta-learned with them: so a task's update needn't point
    along the gradient, and a rate may become 0, or negative.

    Inner loop, one step; o is the product of elements (equation 2):
        phi = theta - alpha o grad_theta L(theta; support)                         (1)
    Outer loop (equation 3):
        min over theta and alpha of the sum over tasks i of L(phi_i; queries_i)    (2)

    What differs:
    - alpha starts at one value for all weights, `inner_lr`, here MAML's .4 of a mean loss; the
      paper's Algorithm 1 leaves open where, and its experiments start far lower.
    - With more than one inner step the same alpha serves all of them.
    - As in MAML: the loss is a mean, and batch norm takes the support set's moments.
    """

    name = "meta-sgd"
    reference = "Li et al. 2017, arXiv:1707.09835"
    summary = "MAML with a learned inner learning rate for each weight."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = MetaSGDHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)

    def build(self) -> None:
        super().build()
        own = dict(self.named_parameters())
        # A name in a list of parameters may not have dots, so they go by their order.
        self.rates = nn.ParameterList(
            torch.full_like(own[name], self.hp.inner_lr) for name in self.adapted_names()
        )

    def inner_state(self, adapted: Tensors) -> Tensors:
        """Alpha, by the names of its weights: handed to the loop, so (2) reaches it."""
        return dict(zip(self.adapted_names(), self.rates, strict=True))

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Any, t: int
    ) -> tuple[Tensors, Any]:
        """The step (1)."""
        moved = {name: phi - opt_state[name] * grads[name] for name, phi in params.items()}
        return moved, opt_state
