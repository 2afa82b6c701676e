"""Self-attention among the points of a set, as FEAT has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """T: one head of attention among the points of a set, added to them, then layer norm.

        mixed_q = sum_k softmax over k of (Q_q . K_k / sqrt(D)) V_k                          (1)
        T(points)_q = layer norm(point_q + linear(mixed_q))                                  (2)

    with Q, K, V linear in the points (D numbers each). Ye et al. 2020, arXiv:1812.03664, section
    3.3; as wide as the points, with the initial weights of the authors' code.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)  # in training, where the engine seeds each step
        self.norm = nn.LayerNorm(width)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=math.sqrt(1 / width))
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, points: Tensor, together: Tensor | None = None) -> Tensor:
        """(B, n, D) to (B, n, D); in another order, the same in that order.

        Args:
            points: B sets, or parts of such.
            together: (B, n, n) bool, which points are of one set; None: all are.
        """
        alike = self.query(points) @ self.key(points).mT / math.sqrt(points.shape[-1])
        if together is not None:
            alike = alike.masked_fill(~together, -torch.inf)
        mixed = alike.softmax(-1) @ self.value(points)  # (1)
        adapted: Tensor = self.norm(points + self.dropout(self.out(mixed)))  # (2)
        return adapted
