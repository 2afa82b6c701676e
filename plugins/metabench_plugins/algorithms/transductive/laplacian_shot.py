"""LaplacianShot: nearest prototypes, with neighbouring queries agreeing."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from metabench import Context, Field, Hyperparameters, Items, PyTree
from metabench_plugins.algorithms.classes import class_means, squared_distances
from metabench_plugins.algorithms.metric.nearest_centroid import NearestCentroidHyperparameters
from metabench_plugins.algorithms.transductive.bd_cspn import rectified
from metabench_plugins.algorithms.transductive.kept_support import KeptSupport


class LaplacianShotHyperparameters(NearestCentroidHyperparameters):
    rectify: Annotated[
        bool, Field(description="rectify the prototypes and move the queries as BD-CSPN does")
    ] = True
    epsilon: Annotated[
        float, Field(gt=0, description="scale of the cosines in that rectification")
    ] = 10.0
    neighbours: Annotated[
        int, Field(ge=1, description="nearest other queries that a query agrees with")
    ] = 2
    weight: Annotated[float, Field(ge=0, description="lambda, of agreement against distance")] = 0.7
    iterations: Annotated[
        int, Field(ge=0, le=1000, description="updates; 0: the nearest prototype")
    ] = 20


class LaplacianShot(KeptSupport):
    """Laplacian-regularised few-shot learning.

    Imtiaz Masud Ziko, Jose Dolz, Eric Granger, Ismail Ben Ayed, "Laplacian Regularized Few-Shot
    Learning", ICML 2020, https://arxiv.org/abs/2006.15486, section 2

    Over assignments y_q of the queries to classes, binary in the end, it minimises
        sum over q of y_q . a_q  +  lambda / 4 sum over q, p of w_qp |y_q - y_p|^2      (1)
    with a_qn = |x_q - prototype n|^2, and w_qp = 1 where p is among the k nearest queries of q.
    With the entropy as barrier of the simplex, and the concave part replaced by its tangent at the
    assignments of before, each query has an update of its own:
        y_q <- softmax(-a_q + lambda sum over p of w_qp y_p)                           (2)
    from y_q = softmax(-a_q). Features are SimpleShot's, centred and of length 1. Prototypes are
    first rectified as in `BDCSPN`, where all queries join a class; not with `rectify = false`.

    Differs:
    - A fixed number of updates, the authors' 20; they stop before that where the bound changes by
      less than a millionth.
    - Their k = 3 counts the query itself, which is then left out: 2 others, the default here. They
      choose lambda on meta-validation, from .1 to 1.5, for each number of shots.
    - The rectification, which their code switches by `proto_rect`, is BD-CSPN's own formula here:
      weights are a softmax over the items of a class, and add up to 1. Their code weights an item
      by its softmax over *classes*, takes the plain mean of these products, so that a prototype of
      doubtful items is also shorter, and lets support items change class. Switched off, a prototype
      is the mean of its class's support items in both.
    - Predictions are scores: (2) before the softmax.
    """

    name = "laplacian-shot"
    reference = "Ziko et al. 2020, arXiv:2006.15486"
    summary = "Nearest prototypes, regularised so that neighbouring queries agree."
    hyperparameters: ClassVar[type[Hyperparameters]] = LaplacianShotHyperparameters

    hp: LaplacianShotHyperparameters

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        known, member, asked = state["features"], state["member"], self.normalised(queries.data)
        if self.hp.rectify:
            prototypes, asked = rectified(known, member, asked, self.hp.epsilon, None)
        else:
            prototypes = class_means(known, member)
        unary = squared_distances(asked, prototypes)  # (B, Q, N)
        near = neighbourhood(asked, self.hp.neighbours)
        return bound_updates(unary, near, self.hp.weight, self.hp.iterations)


def neighbourhood(features: Tensor, neighbours: int) -> Tensor:
    """(B, Q, Q) w of (1): 1 where the second is among the first one's nearest others, else 0."""
    count = features.shape[1]
    distances = squared_distances(features, features)
    itself = torch.eye(count, dtype=torch.bool, device=features.device)
    among = min(neighbours, count - 1)
    nearest = distances.masked_fill(itself, torch.inf).topk(among, largest=False).indices
    return torch.zeros_like(distances).scatter(-1, nearest, 1.0)


def bound_updates(unary: Tensor, near: Tensor, weight: float, iterations: int) -> Tensor:
    """(B, Q, N) the assignments after some updates (2), before their last softmax.

    Args:
        unary: a, (B, Q, N).
        near: w, (B, Q, Q).
        weight: lambda.
        iterations: how many updates.
    """
    scores = -unary
    for _ in range(iterations):
        scores = torch.baddbmm(unary, near, scores.softmax(-1), beta=-1, alpha=weight)  # (2)
    return scores
