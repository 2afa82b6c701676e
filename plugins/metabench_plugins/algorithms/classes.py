"""What the metric learners share: who is of which class, class sums and means, distances."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import Support

Distance = Literal["squared-euclidean", "cosine"]


def class_membership(support: Support) -> Tensor:
    """(B, S, ways) bool: whether a support item is real and of that class.

    Classes may differ in size. Every class needs a real item: one without has no mean.
    """
    ids = torch.arange(support.ways, device=support.targets.values.device)
    member = support.targets.values.unsqueeze(-1) == ids
    for mask in (support.items.mask, support.targets.mask):
        if mask is not None:
            member = member & mask.unsqueeze(-1)
    return member


def class_sums(features: Tensor, member: Tensor) -> Tensor:
    """(B, ways, ...) sums over each class of features (B, S, ...), by membership (B, S, ways)."""
    sums = member.to(features.dtype).mT @ features.flatten(2)
    return sums.reshape(*sums.shape[:2], *features.shape[2:])


def class_means(features: Tensor, member: Tensor) -> Tensor:
    """(B, ways, D) means over each class of features (B, S, D), by membership (B, S, ways)."""
    return class_sums(features, member) / member.sum(1).unsqueeze(-1)


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """(B, Q, P) squared Euclidean distances of queries (B, Q, D) to points (B, P, D)."""
    # |q - p|^2 = |q|^2 - 2 q.p + |p|^2 is one matrix product and holds nothing of (B, Q, P, D). It
    # loses digits far from the origin, so the points' mean becomes the origin.
    origin = points.mean(1, keepdim=True)
    queries, points = queries - origin, points - origin
    products = queries @ points.mT
    return queries.square().sum(-1).unsqueeze(2) - 2 * products + points.square().sum(-1)[:, None]


def cosine_similarities(queries: Tensor, points: Tensor) -> Tensor:
    """(B, Q, P) cosines of the angles of queries (B, Q, D) with points (B, P, D)."""
    return F.normalize(queries, dim=-1) @ F.normalize(points, dim=-1).mT
