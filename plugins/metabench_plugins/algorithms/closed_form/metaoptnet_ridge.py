"""MetaOptNet with ridge regression: a fixed penalty and a learned scale."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import Field, Hyperparameters, Recipe
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead, ridge_coefficients


class MetaOptNetRidgeHyperparameters(Hyperparameters):
    penalty: Annotated[float, Field(gt=0, description="lambda, the weight of the penalty")] = 50.0
    scale: Annotated[
        float, Field(gt=0, description="gamma, the scale of the logits, as training begins")
    ] = 1.0


class MetaOptNetRidge(LinearHead):
    """MetaOptNet-RR.

    Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto, "Meta-Learning with
    Differentiable Convex Optimization", 2019, https://arxiv.org/abs/1904.03758, and the authors'
    code. Equations are numbered as they stand here.

    Ridge regression of the one-hot labels Y (S x N) on the support features X (S x D), by the dual
        min over a of  1/2 tr a^T (X X^T + lambda I) a - 2 tr Y^T a                (1)
    A query with features x gets the logits
        gamma x X^T a                                                              (2)
    The cross-entropy of the queries trains the backbone through the solution, and the scale gamma.

    Differs: (1) has no constraints, so it is solved as the linear system that it is and not by a
    solver of quadratic programmes: a = 2 (X X^T + lambda I)^(-1) Y. The authors train this head and
    the SVM with more shots (15) than they test with, on 8 episodes a step, with smoothed labels,
    SGD and augmented images; here the recipe says.
    """

    name = "metaoptnet-ridge"
    family = "closed-form"
    reference = "Lee et al. 2019, arXiv:1904.03758"
    summary = "Ridge regression with a fixed penalty and a learned scale, differentiated."
    hyperparameters: ClassVar[type[Hyperparameters]] = MetaOptNetRidgeHyperparameters
    recipe = Recipe(steps=2000, ways=20, queries=5, validate_every=500)

    hp: MetaOptNetRidgeHyperparameters

    def build(self) -> None:
        self.scale = nn.Parameter(torch.tensor(self.hp.scale))

    def solve(self, gram: Tensor, labels: Tensor) -> Tensor:
        dual = ridge_coefficients(gram, 2 * labels, self.hp.penalty)  # (1)
        return self.scale * dual  # gamma of (2)
