"""LR-D2: logistic regression on the support set by Newton's method, differentiated."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import Field, Hyperparameters, Recipe
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead, ridge_coefficients

SURE = 500.0
"""Scores beyond count as this in mu: a step may go far too far, and exp would overflow."""


class LRD2Hyperparameters(Hyperparameters):
    penalty: Annotated[
        float, Field(gt=0, description="lambda, the weight of the penalty, as training begins")
    ] = 10.0
    newton_steps: Annotated[
        int, Field(ge=1, le=100, description="steps of Newton's method, from weights of zero")
    ] = 5


class LRD2(LinearHead):
    """Logistic Regression Differentiable Discriminator.

    Luca Bertinetto, Joao F. Henriques, Philip H. S. Torr, Andrea Vedaldi, "Meta-learning with
    differentiable closed-form solvers", 2019, https://arxiv.org/abs/1805.08136; the part on
    logistic regression as an iterative base learner. Equations are numbered as they stand here.

    For support features X (S x D) and labels y of 0 and 1, Newton's method for
        min over w of  sum over i of log(1 + exp(x_i w)) - y_i x_i w + lambda / 2 |w|^2
    is a weighted ridge regression a step, iteratively re-weighted least squares, from w = 0:
        mu = sigmoid(X w),  s = mu (1 - mu),  z = X w + (y - mu) / s               (1)
        w <- X^T (X X^T + lambda diag(s)^(-1))^(-1) z                              (2)
    The cross-entropy of the queries trains the backbone and lambda through the steps. As in the
    authors' code each class is told from the rest by a problem of its own, the logits are the N
    scores x w, and features are followed by a 1, so w has a penalised bias. Of two classes there is
    one problem, of which the other class is the mirror image: logits x w / 2 and -x w / 2, the
    softmax of which is the sigmoid of x w.

    Differs: lambda is learned by its logarithm, so that it stays positive; the authors' code keeps
    it at 50 unless told to learn it (10 did better on quickdraw's validation classes). The scale
    and bias that their code has for the logits are not used in it, nor here. (2) is solved in its
    symmetric form,
        with r = sqrt(s):  X^T diag(r) (diag(r) X X^T diag(r) + lambda I)^(-1) (r z),
    which divides by nothing that may be zero. For network and episodes, see `r2d2`.
    """

    name = "lr-d2"
    family = "closed-form"
    reference = "Bertinetto et al. 2019, arXiv:1805.08136"
    summary = "Logistic regression on the support set by Newton steps, differentiated."
    hyperparameters: ClassVar[type[Hyperparameters]] = LRD2Hyperparameters
    recipe = Recipe(steps=2000, ways=20, queries=5, validate_every=500)
    intercept = True

    hp: LRD2Hyperparameters

    def build(self) -> None:
        self.log_penalty = nn.Parameter(torch.tensor(math.log(self.hp.penalty)))

    def solve(self, gram: Tensor, labels: Tensor) -> Tensor:
        penalty = self.log_penalty.double().exp()
        gram = gram.unsqueeze(1)  # (B, 1, S, S): the same for each class
        sign = 2 * labels.mT.unsqueeze(-1) - 1  # (B, N, S, 1), 1 or -1
        coefficients = torch.zeros_like(sign)  # w = X^T coefficients
        for _ in range(self.hp.newton_steps):
            scores = gram @ coefficients  # X w
            bounded = scores.clamp(-SURE, SURE)
            root = (bounded.sigmoid() * (-bounded).sigmoid()).sqrt()  # r
            # (y - mu) / r, with y - mu = sign sigmoid(-sign X w).
            error = sign * (-sign * bounded / 2).exp()
            weighted = root * gram * root.mT
            found = ridge_coefficients(weighted, root * scores + error, penalty)
            coefficients = root * found  # (2)
        logits = coefficients.squeeze(-1).mT  # (B, S, N)
        return logits / 2 if logits.shape[-1] == 2 else logits
