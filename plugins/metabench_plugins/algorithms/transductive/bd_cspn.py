"""BD-CSPN: prototypes rectified by the queries, after these were moved onto the support set."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from metabench import Context, Field, Hyperparameters, Items, PyTree
from metabench_plugins.algorithms.classes import class_means, cosine_similarities
from metabench_plugins.algorithms.metric.nearest_centroid import NearestCentroidHyperparameters
from metabench_plugins.algorithms.transductive.kept_support import KeptSupport


class BDCSPNHyperparameters(NearestCentroidHyperparameters):
    normalisation: Annotated[
        Literal["un", "l2n", "cl2n"],
        Field(description="of features, as in nearest-centroid; l2n is the paper's"),
    ] = "l2n"
    epsilon: Annotated[
        float, Field(gt=0, description="scale of the cosines by which items are weighted")
    ] = 10.0
    confident: Annotated[
        int | None,
        Field(ge=1, description="Z, queries that may join a class, the surest; none: all of them"),
    ] = 8


class BDCSPN(KeptSupport):
    """Bias diminishing for cosine-similarity prototypical networks.

    Jinlu Liu, Liang Song, Yongqiang Qin, "Prototype Rectification for Few-Shot Learning", ECCV
    2020, https://arxiv.org/abs/1911.10713, section 3

    Basic prototypes P_n: class means of the normalised support features               (1)
    Cross-class bias: each query is moved by
        xi = mean of the support features - mean of the query features                 (2)
    Intra-class bias: the Z queries of each class that are predicted with most confidence, by the
    softmax of epsilon cos(x, P_n), join its support items, and
        P'_n = sum over i of w_i x_i over all of these,
        w_i = exp(epsilon cos(x_i, P_n)) / sum over j of exp(epsilon cos(x_j, P_n))     (3)
    A query gets its cosines with the rectified prototypes P'_n.                       (4)

    Differs: the pre-training is the recipe's plain one with a linear classifier, the paper's with a
    cosine classifier. Predictions are scores, cosines without the paper's learnt scale.
    """

    name = "bd-cspn"
    reference = "Liu et al. 2020, arXiv:1911.10713"
    summary = "Prototypes rectified by queries that were moved onto the support set."
    hyperparameters: ClassVar[type[Hyperparameters]] = BDCSPNHyperparameters

    hp: BDCSPNHyperparameters

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        prototypes, moved = rectified(
            state["features"],
            state["member"],
            self.normalised(queries.data),
            self.hp.epsilon,
            self.hp.confident,
        )
        return cosine_similarities(moved, prototypes)  # (4)


def rectified(
    features: Tensor, member: Tensor, queries: Tensor, epsilon: float, confident: int | None
) -> tuple[Tensor, Tensor]:
    """Rectified prototypes (B, N, D), and the moved queries (B, Q, D).

    Args:
        features: (B, S, D) of the support items.
        member: (B, S, N) bool, whether a support item is of a class; padding is of none.
        queries: (B, Q, D).
        epsilon: scale of the cosines.
        confident: how many queries may join a class; None: all that are nearest to it.
    """
    basic = class_means(features, member)  # (1), (B, N, D)
    real = member.any(-1, keepdim=True).to(features.dtype)  # (B, S, 1)
    mean = (features * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
    moved = queries + mean - queries.mean(1, keepdim=True)  # (2)
    likeness = epsilon * cosine_similarities(moved, basic)  # (B, Q, N)
    joined = _joined(likeness, confident)
    scores = torch.cat([epsilon * cosine_similarities(features, basic), likeness], dim=1)
    weights = scores.masked_fill(~torch.cat([member, joined], dim=1), -torch.inf).softmax(1)
    return weights.mT @ torch.cat([features, moved], dim=1), moved  # (3)


def _joined(likeness: Tensor, confident: int | None) -> Tensor:
    """(B, Q, N) bool: whether a query joins a class, by logits (B, Q, N)."""
    count, ways = likeness.shape[1:]
    ids = torch.arange(ways, device=likeness.device)
    nearest = likeness.argmax(-1, keepdim=True) == ids
    if confident is None or confident >= count:
        return nearest
    confidence = likeness.log_softmax(-1).masked_fill(~nearest, -torch.inf)
    surest = confidence.topk(confident, dim=1).indices  # (B, Z, N), others where there are fewer
    return nearest & torch.zeros_like(nearest).scatter(1, surest, True)
