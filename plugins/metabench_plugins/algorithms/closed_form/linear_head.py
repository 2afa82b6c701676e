"""What the closed-form heads share: a linear classifier by its dual coefficients, and ridge."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from metabench import Context, EmbeddingAlgorithm, Items, PyTree, Support
from metabench_plugins.algorithms.classes import class_membership


class LinearHead(EmbeddingAlgorithm):
    """A linear classifier of a backbone's features, the solution of a convex problem on each task.

    With the support features X (S x D), the weights of all of these heads are X^T a: what is solved
    for are coefficients a (S x N) of the items, by their Gram matrix X X^T alone. There are usually
    far fewer items than dimensions. All of it is computed in float64, whatever the network's
    precision: it costs next to nothing beside the network, and Gram matrices lose half of the
    digits.
    """

    equivariant_to = frozenset({"support-order", "class-labels"})
    intercept: ClassVar[bool] = False
    """Whether features are followed by a 1, so that the weights end with a bias, penalised too."""

    @abstractmethod
    def solve(self, gram: Tensor, labels: Tensor) -> Tensor:
        """Coefficients (B, S, N), differentiable with respect to what training is to change.

        Args:
            gram: (B, S, S) float64 products of the items' features, zero where there is padding.
            labels: (B, S, N) one-hot, float64; padding is of no class.
        """

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        member = class_membership(support)  # (B, S, N)
        labels = member.double()
        features = support.items.data
        kept = member.any(-1, keepdim=True)  # (B, S, 1)
        known = torch.where(kept, features.double(), 0)
        if self.intercept:
            known = torch.cat([known, kept.double()], -1)
        coefficients = self.solve(known @ known.mT, labels)
        weights = coefficients.mT @ known  # (B, N, D), or D + 1 with a bias
        return {"weights": weights.to(torch.promote_types(features.dtype, torch.float32))}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        size = queries.data.shape[-1]
        slope, bias = state["weights"].split([size, int(self.intercept)], -1)
        # Of no bias the sum is zero.
        logits: Tensor = queries.data @ slope.mT + bias.sum(-1).unsqueeze(1)
        return logits


def ridge_coefficients(gram: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """(..., S, N) a of ridge regression, the weights of which are W = X^T a.

    They minimise |X W - Y|^2 + penalty |W|^2. By Woodbury's identity
        W = (X^T X + penalty I)^(-1) X^T Y = X^T (X X^T + penalty I)^(-1) Y.

    Args:
        gram: (..., S, S), X X^T.
        targets: (..., S, N), Y.
        penalty: a positive number.
    """
    found: Tensor = torch.linalg.solve_ex(gram + penalty * identity_like(gram), targets).result
    return found


def identity_like(matrices: Tensor) -> Tensor:
    """(S, S) identity for matrices (..., S, S)."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
