"""TIM: a classifier that is sure of each query, and sees all classes alike among them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from metabench import (
    Context,
    Field,
    Hyperparameters,
    Items,
    PyTree,
    UsageError,
    unroll,
)
from metabench_plugins.algorithms.adam import adam, no_moments
from metabench_plugins.algorithms.classes import class_means
from metabench_plugins.algorithms.metric.nearest_centroid import NearestCentroidHyperparameters
from metabench_plugins.algorithms.transductive.kept_support import KeptSupport

Tensors = dict[str, Tensor]
SMALLEST = 1e-12
"""Probabilities below count as this in logarithms."""


class TIMHyperparameters(NearestCentroidHyperparameters):
    normalisation: Annotated[
        Literal["un", "l2n", "cl2n"],
        Field(description="of features, as in nearest-centroid; l2n is the paper's"),
    ] = "l2n"
    solver: Annotated[
        Literal["gradient", "alternating"],
        Field(description="TIM-GD, by Adam, or TIM-ADM, by steps in closed form"),
    ] = "gradient"
    steps: Annotated[int, Field(ge=0, le=10_000, description="steps of the solver")] = 50
    lr: Annotated[float, Field(gt=0, description="Adam's learning rate (gradient)")] = 3e-3
    temperature: Annotated[float, Field(gt=0, description="tau, of the logits")] = 15.0
    support_weight: Annotated[
        float, Field(ge=0, description="lambda, of the support set's cross-entropy")
    ] = 0.1
    conditional_weight: Annotated[
        float, Field(ge=0, description="alpha, of the conditional entropy")
    ] = 0.1
    entropy_order: Annotated[
        float,
        Field(
            ge=1,
            le=10,
            description="a, of the queries' entropies; 1: Shannon's (TIM); above: alpha-TIM",
        ),
    ] = 1.0


class TIM(KeptSupport):
    """Transductive information maximisation.

    Malik Boudiaf, Imtiaz Masud Ziko, Jerome Rony, Jose Dolz, Pablo Piantanida, Ismail Ben Ayed,
    "Transductive Information Maximization For Few-Shot Learning", NeurIPS 2020,
    https://arxiv.org/abs/2008.11297, section 2

    Weights w_n, which begin as the class means of the support features, give
        p_in = softmax over n of -tau / 2 |x_i - w_n|^2                                (1)
    and minimise, with p_n the mean of p_qn over the queries,
        lambda CE(support) - H(p_n) + alpha / |Q| sum over q of H(p_q)                 (2)
    the cross-entropy of the support set, minus the mutual information of queries and labels.

    `solver = "gradient"`: Adam on (2). `solver = "alternating"`: auxiliary assignments q, then w,
    each with the other held:
        q_in ~ p_in^(1 + alpha) / sqrt(sum over i of p_in^(1 + alpha))                 (3)
        w_n <- [ lambda / (1 + alpha) sum over S of (y_in x_i + p_in (w_n - x_i))
                 + |S| / |Q| sum over Q of (q_in x_i + p_in (w_n - x_i)) ]
               / [ lambda / (1 + alpha) sum over S of y_in + |S| / |Q| sum over Q of q_in ]   (4)

    -H(p_n) wants as many queries of each class. With `entropy_order` a > 1 both entropies are
    Tsallis's of that order, H_a(p) = (1 - sum of p_n^a) / (a - 1): alpha-TIM (Veilleux et al. 2021,
    arXiv:2204.11181), which lets the classes differ more. Its authors take the weights lambda =
    alpha = 1, and a from 2 (1 shot) to 7 (5 shots).

    Differs: nothing in the equations. The paper takes 1000 steps of Adam at a learning rate of
    1e-4; the default here is 50 at 3e-3, a twentieth of the work. Of the alternating solver it
    takes 150. Its pre-training has label smoothing and augmentation.
    """

    name = "tim"
    reference = "Boudiaf et al. 2020, arXiv:2008.11297"
    summary = "Fits a classifier that maximises the mutual information of queries and labels."
    output = "logits"
    hyperparameters: ClassVar[type[Hyperparameters]] = TIMHyperparameters

    hp: TIMHyperparameters

    @classmethod
    def equivariances(cls, hp: Any) -> frozenset[Literal["support-order", "class-labels"]]:
        # Where classes can't be told apart, its many steps of (3) and (4) make another solution of
        # what rounding left.
        return frozenset() if hp.solver == "alternating" else cls.equivariant_to

    def build(self) -> None:
        super().build()
        if self.hp.solver == "alternating" and self.hp.entropy_order != 1:
            raise UsageError(
                "tim has no alternating solver for entropies of another order",
                "set solver to gradient, or entropy_order to 1",
            )

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        known, asked = state["features"], self.normalised(queries.data)
        means, wanted = class_means(known, state["member"]), state["member"].to(asked.dtype)
        solve = self.descended if self.hp.solver == "gradient" else self.alternated
        return self.logits(asked, solve(means, known, wanted, asked))

    def logits(self, features: Tensor, weights: Tensor) -> Tensor:
        """(1) before the softmax, (B, n, N), but for tau / 2 |x|^2, which all classes share."""
        norms = weights.square().sum(-1).unsqueeze(1)  # (B, 1, N)
        tau = self.hp.temperature
        return torch.baddbmm(norms, features, weights.mT, beta=-tau / 2, alpha=tau)

    def objective(self, weights: Tensor, known: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
        """(2) of each task, (B,).

        Args:
            weights: (B, N, D).
            known: (B, S, D) support features.
            wanted: (B, S, N) ones where a support item is of a class; padding is of none.
            asked: (B, Q, D) queries.
        """
        log_p = self.logits(known, weights).log_softmax(-1)
        cross = -(log_p * wanted).sum((1, 2)) / wanted.sum((1, 2))
        p = self.logits(asked, weights).softmax(-1)
        marginal = entropy(p.mean(1), self.hp.entropy_order)
        conditional = entropy(p, self.hp.entropy_order).mean(1)
        information = marginal - self.hp.conditional_weight * conditional
        return self.hp.support_weight * cross - information

    def descended(self, weights: Tensor, known: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
        """Weights (B, N, D) after Adam's steps on (2), of all tasks at once."""

        def loss(p: Tensors, b: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
            return self.objective(p["weights"], *batch).sum(), b

        start, batch = {"weights": weights}, (known, wanted, asked)
        found, _, _ = unroll(
            loss, start, {}, batch, no_moments(start), adam(self.hp.lr), start, self.hp.steps, 1
        )
        return found["weights"]

    def alternated(self, weights: Tensor, known: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
        """Weights (B, N, D) after steps (3) and (4)."""
        real = wanted.sum(-1, keepdim=True)  # (B, S, 1), 0 for padding
        of_support = self.hp.support_weight / (1 + self.hp.conditional_weight)
        of_queries = real.sum(1, keepdim=True) / asked.shape[1]  # (B, 1, 1)
        for _ in range(self.hp.steps):
            p = self.logits(asked, weights).softmax(-1)
            q = p ** (1 + self.hp.conditional_weight)
            q = q / q.sum(1, keepdim=True).clamp(min=SMALLEST).sqrt()
            q = q / q.sum(-1, keepdim=True)  # (3)
            p_known = self.logits(known, weights).softmax(-1) * real
            items = torch.cat([known, asked], dim=1)
            # Each item's label and probability, times its weight; then (4) is two sums over items.
            labels = torch.cat([of_support * wanted, of_queries * q], dim=1)
            probabilities = torch.cat([of_support * p_known, of_queries * p], dim=1)
            sums = (labels - probabilities).mT @ items
            kept = probabilities.sum(1).unsqueeze(-1) * weights
            weights = (sums + kept) / labels.sum(1).unsqueeze(-1)  # (4)
        return weights


def entropy(p: Tensor, order: float) -> Tensor:
    """Shannon's (order 1) or Tsallis's entropy of distributions (..., N), in nats."""
    if order == 1:
        return -(p * p.clamp(min=SMALLEST).log()).sum(-1)
    return (1 - (p**order).sum(-1)) / (order - 1)
