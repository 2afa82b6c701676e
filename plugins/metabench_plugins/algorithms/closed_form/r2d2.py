"""R2-D2: ridge regression on the support set, through which the backbone is trained."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import Field, Hyperparameters, Recipe
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead, ridge_coefficients


class R2D2Hyperparameters(Hyperparameters):
    penalty: Annotated[
        float, Field(gt=0, description="lambda, the weight of the penalty, as training begins")
    ] = 200.0
    scale: Annotated[
        float, Field(gt=0, description="alpha, the scale of the predictions, as training begins")
    ] = 10.0


class R2D2(LinearHead):
    """Ridge Regression Differentiable Discriminator.

    Luca Bertinetto, Joao F. Henriques, Philip H. S. Torr, Andrea Vedaldi, "Meta-learning with
    differentiable closed-form solvers", 2019, https://arxiv.org/abs/1805.08136; the part on ridge
    regression as the base learner. Equations are numbered as they stand here.

    With the support features X (S x D) and one-hot labels Y (S x N), the weights of a task are
        W = arg min |X W - Y|^2 + lambda |W|^2 = X^T (X X^T + lambda I)^(-1) Y     (1)
    and a query with features x gets the logits
        alpha x W + beta                                                           (2)
    The cross-entropy of the queries trains the backbone, lambda and alpha through the solution.

    As in the authors' code, features are followed by a 1, so W has a penalised bias.

    Differs: no beta, which shifts all classes alike, so that a softmax doesn't see it. lambda is
    learned by its logarithm, so that it stays positive; the authors' code has the same as an option
    and otherwise keeps lambda at 50 for the *mean* squared error of the items, which is 50 S here;
    200 did better than 50 and less on quickdraw's validation classes. alpha starts at 1e-4 or 10
    there, by data set. Their network hands its last two maps on together, and their episodes differ
    in shots; here the cell says which network, and the recipe which episodes.
    """

    name = "r2d2"
    family = "closed-form"
    reference = "Bertinetto et al. 2019, arXiv:1805.08136"
    summary = "Ridge regression on the support set, through which the backbone is trained."
    hyperparameters: ClassVar[type[Hyperparameters]] = R2D2Hyperparameters
    recipe = Recipe(steps=2000, ways=20, queries=5, validate_every=500)
    intercept = True

    hp: R2D2Hyperparameters

    def build(self) -> None:
        self.log_penalty = nn.Parameter(torch.tensor(math.log(self.hp.penalty)))
        self.scale = nn.Parameter(torch.tensor(self.hp.scale))

    def solve(self, gram: Tensor, labels: Tensor) -> Tensor:
        penalty = self.log_penalty.double().exp()
        return self.scale * ridge_coefficients(gram, labels, penalty)  # (1), and alpha of (2)
