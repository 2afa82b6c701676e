"""PT-MAP: power transform, then optimal transport of the queries to moving class centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    Phase,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import class_means, class_membership, squared_distances
from metabench_plugins.algorithms.pretrained import pretrained

SMALLEST = 1e-6
"""Added to features before the power, as in the paper."""


class PTMAPHyperparameters(Hyperparameters):
    power: Annotated[
        float, Field(gt=0, le=2, description="beta, of features that are not negative")
    ] = 0.5
    sharpness: Annotated[
        float, Field(gt=0, description="lambda, 1 / the weight of the transport's entropy")
    ] = 10.0
    transports: Annotated[
        int, Field(ge=1, le=1000, description="Sinkhorn's iterations a transport")
    ] = 20
    iterations: Annotated[int, Field(ge=0, le=1000, description="moves of the centres")] = 20
    inertia: Annotated[
        float, Field(gt=0, le=1, description="alpha, the share of a move that is made")
    ] = 0.2


class PTMAP(EmbeddingAlgorithm):
    """Power transform and maximum a posteriori.

    Yuqing Hu, Vincent Gripon, Stephane Pateux, "Leveraging the Feature Distribution in
    Transfer-based Few-Shot Learning", ICANN 2021, https://arxiv.org/abs/2006.03806, section 3

    Features, which a ReLU left without negative values, become
        (x + 1e-6)^beta, to length 1                                                   (1)
    and, as in the authors' code, are centred, support set and queries each on its own mean, and
    scaled to length 1 again                                                           (2)
    From the support's class means c_n, repeated:
        M = the transport of the queries, one each, to the classes, Q / N each, that minimises
            sum of M_qn |x_q - c_n|^2 - entropy(M) / lambda, by Sinkhorn's iterations  (3)
        c_n <- c_n + alpha (mu_n - c_n), mu_n the mean of class n's support items and of all
            queries weighted by M_qn                                                   (4)
    The last transport is the prediction.

    (3) assumes as many queries of each class, which is true of balanced protocols and an advantage
    there; where it isn't, PT-MAP assumes it all the same and loses by it (arXiv:2204.11181). Of a
    single query the transport says nothing.

    Defaults are those of the authors' code: beta .5, lambda 10, 20 moves and, whatever the number
    of shots, alpha .2.

    Differs:
    - A fixed number of Sinkhorn's iterations, in logarithms, where the authors' go on until the
      marginals change by less than 1e-6, at most 1000. Each transport begins with the scaling of
      the one before, so that few are enough.
    - The authors' QR decomposition keeps all inner products; it only makes the vectors shorter, and
      is left out.
    - Negative features count as 0; the paper's log for beta = 0 is left out.
    - Predictions are scores: log M.
    """

    name = "pt-map"
    family = "transductive"
    reference = "Hu et al. 2021, arXiv:2006.03806"
    summary = "Power-transformed features, queries assigned to classes by optimal transport."
    inference = "transductive"
    equivariant_to = frozenset({"support-order", "class-labels"})
    output = "scores"
    hyperparameters: ClassVar[type[Hyperparameters]] = PTMAPHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)

    hp: PTMAPHyperparameters

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        return pretrained(self.backbone, self.problem, recipe)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        member = class_membership(support)
        features = self.transformed(support.items.data)
        return {"features": centred(features, member.any(-1)), "member": member}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        known, asked = state["features"], self.transformed(queries.data)
        asked = centred(asked, asked.new_ones(asked.shape[:2]))
        return self.assigned(known, state["member"], asked)

    def assigned(self, known: Tensor, member: Tensor, asked: Tensor) -> Tensor:
        """The last logarithm of M, (B, Q, N).

        Args:
            known: (B, S, D) support features after (2).
            member: (B, S, N) bool, whether a support item is of a class.
            asked: (B, Q, D) query features after (2).
        """
        of_class = member.to(asked.dtype)
        sums, counts = of_class.mT @ known, of_class.sum(1).unsqueeze(-1)
        centres = class_means(known, member)
        plan, scaling = self.transported(asked, centres, None)
        for _ in range(self.hp.iterations):
            weights = plan.exp()  # (B, Q, N)
            means = (sums + weights.mT @ asked) / (counts + weights.sum(1).unsqueeze(-1))
            centres = centres.lerp(means, self.hp.inertia)  # (4)
            plan, scaling = self.transported(asked, centres, scaling)
        return plan

    def transformed(self, features: Tensor) -> Tensor:
        """(1) of features (B, n, D)."""
        return F.normalize((features.relu() + SMALLEST) ** self.hp.power, dim=-1)

    def transported(
        self, queries: Tensor, centres: Tensor, scaling: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The logarithm of M, (B, Q, N), and of the classes' scaling, (B, 1, N); see (3)."""
        scores = -self.hp.sharpness * squared_distances(queries, centres)
        return sinkhorn(scores, self.hp.transports, scaling)


def centred(features: Tensor, real: Tensor) -> Tensor:
    """(2) of features (B, n, D), by the mean of those that are real (B, n), not padding."""
    weights = (real / real.sum(1, keepdim=True)).unsqueeze(1).to(features.dtype)
    return F.normalize(features - weights @ features, dim=-1)


def sinkhorn(
    scores: Tensor, iterations: int, scaling: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The transport plan exp(u_q + scores + v_n) whose rows add up to 1 and columns to Q / N.

    Args:
        scores: (B, Q, N), -lambda times the cost.
        iterations: each fits rows, then columns (Cuturi 2013, arXiv:1306.0895, Algorithm 1).
        scaling: v to begin with, (B, 1, N); None: zeros.

    Returns:
        the plan's logarithm (B, Q, N), columns exact, and v.
    """
    count, ways = scores.shape[1:]
    column = torch.log(scores.new_full((), count / ways))
    v = torch.zeros_like(scores[:, :1]) if scaling is None else scaling
    for _ in range(iterations):
        u = -(scores + v).logsumexp(2, keepdim=True)  # (B, Q, 1)
        rows = scores + u
        v = column - rows.logsumexp(1, keepdim=True)
    return rows + v, v
