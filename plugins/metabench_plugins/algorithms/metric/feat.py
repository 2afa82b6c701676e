"""FEAT: prototypes that a transformer adapts to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    EpisodeBatch,
    Episodic,
    Field,
    Hyperparameters,
    Items,
    Phase,
    PyTree,
    Recipe,
    Support,
    query_cross_entropy,
)
from metabench_plugins.algorithms.attention import SelfAttention
from metabench_plugins.algorithms.classes import class_means, class_membership, squared_distances
from metabench_plugins.algorithms.pretrained import PretrainedHyperparameters, pretrained_before


class FEATHyperparameters(PretrainedHyperparameters):
    temperature: Annotated[
        float, Field(gt=0, description="distances are divided by it before the softmax")
    ] = 64.0
    contrast: Annotated[
        float, Field(ge=0, description="lambda, the weight of the auxiliary task in training")
    ] = 0.1
    contrast_temperature: Annotated[
        float, Field(gt=0, description="the temperature of the auxiliary task")
    ] = 64.0
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="share of the adaptation dropped in training")
    ] = 0.0


class FEAT(EmbeddingAlgorithm):
    """Few-shot embedding adaptation with transformer.

    Han-Jia Ye, Hexiang Hu, De-Chuan Zhan, Fei Sha, "Few-Shot Learning via Embedding Adaptation with
    Set-to-Set Functions", 2020, https://arxiv.org/abs/1812.03664

    The prototypes of a task are adapted to one another by self-attention T (section 3.3), and a
    query goes to the nearest. Q, K, V are linear in the points; c_n is the mean embedding of class
    n, z that of a query:

        mixed_q = sum_k softmax over k of (Q_q . K_k / sqrt(D)) V_k                          (1)
        T(points)_q = layer norm(point_q + linear(mixed_q))                                  (2)
        psi_1, ..., psi_N = T(c_1, ..., c_N)                                                 (3)
        logit of class n = -|z - psi_n|^2 / temperature                                      (4)

    In training an auxiliary task (section 3.4) keeps adapted embeddings near those of their class.
    T is applied to all items of a class, support and queries, as one set; m_n is the mean of what
    comes out, and y the class of x:

        loss = cross-entropy of the queries by (4)
               + lambda mean over x of cross-entropy of (-|T(x) - m_n|^2 / temperature)_n, y (5)

    The backbone is first trained to classify all training classes, which is `baseline`'s training
    where the number of steps and their settings are the same.

    Differs: backbone and T learn at one rate, the recipe's, where the authors give T a rate ten
    times as high. In (5) the authors' code compares the embeddings before adaptation with m_n; here
    those after it, as in the paper. They drop half of the linear layer's output in training
    (`dropout`, 0 by default), and a tenth of the attention (left out). Their temperatures and
    lambda differ from backbone to backbone and with the shots; the defaults are of their order.
    """

    name = "feat"
    family = "metric"
    reference = "Ye et al. 2020, arXiv:1812.03664"
    summary = "Prototypical networks whose prototypes a transformer adapts to one another."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = FEATHyperparameters
    recipe = Recipe(steps=1000, queries=5, validate_every=250)

    hp: FEATHyperparameters

    def build(self) -> None:
        self.attention = SelfAttention(self.backbone.feature_dim, self.hp.dropout)

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        before = pretrained_before(self.backbone, self.problem, recipe, self.hp)
        return [*before, Episodic(recipe)]

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """(5)."""
        support, queries = self.embed_episode(batch)
        logits = self.predict(self.adapt(support, ctx), queries, ctx)
        loss = query_cross_entropy(logits, batch.query_targets)
        if not self.hp.contrast:
            return loss
        of_class = class_membership(Support(queries, batch.query_targets, support.ways))
        everything = torch.cat([support.items.data, queries.data], dim=1)  # (B, S + Q, D)
        member = torch.cat([class_membership(support), of_class], dim=1)  # (B, S + Q, N)
        return loss + self.hp.contrast * self.auxiliary_loss(everything, member)

    def auxiliary_loss(self, embedded: Tensor, member: Tensor) -> Tensor:
        """The second term of (5), before lambda.

        Args:
            embedded: (B, n, D).
            member: (B, n, N) bool, whether an item is of a class; padding is of none.
        """
        of_class = member.to(embedded.dtype)
        # An item is always in one set with itself, or padding would attend to nothing at all.
        itself = torch.eye(member.shape[1], dtype=torch.bool, device=member.device)
        adapted = self.attention(embedded, (of_class @ of_class.mT > 0) | itself)
        centres = class_means(adapted, member)  # m_n
        logits = -squared_distances(adapted, centres) / self.hp.contrast_temperature
        return -(logits.log_softmax(-1) * of_class).sum() / of_class.sum()

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        prototypes = class_means(support.items.data, class_membership(support))  # (B, N, D)
        return {"prototypes": self.attention(prototypes)}  # (3)

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return -squared_distances(queries.data, state["prototypes"]) / self.hp.temperature  # (4)
