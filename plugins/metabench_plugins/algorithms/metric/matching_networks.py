"""Matching networks: a query takes the labels of the support items that it resembles."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import (
    Distance,
    class_membership,
    cosine_similarities,
    squared_distances,
)

DEFAULT_SCALE: dict[Distance, float] = {"cosine": 10.0, "squared-euclidean": 1.0}


class MatchingNetworksHyperparameters(Hyperparameters):
    distance: Annotated[
        Distance, Field(description="c, how alike a query and a support item are")
    ] = "cosine"
    scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="what c is multiplied by before the softmax; "
            "none: 10 for cosine, 1 for squared-euclidean",
        ),
    ] = None


class MatchingNetworks(EmbeddingAlgorithm):
    """Matching networks, without full-context embeddings.

    Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra, "Matching
    Networks for One Shot Learning", 2016, https://arxiv.org/abs/1606.04080

    A query attends to the support items by a softmax over similarities of embeddings, and the
    probability of a class is the attention that its items get. Nothing is fitted at test time, and
    training episodes are built like test episodes.

    The logits are log probabilities: their softmax is the paper's equation (1).

    Differs: the embeddings f and g are one backbone, without the paper's full-context embeddings
    (its section 2.1.2: an attention LSTM for f, a bidirectional LSTM for g). The paper's softmax
    has no scale; over cosines, which lie in [-1, 1], it can hardly become certain, hence 10.
    """

    name = "matching-networks"
    family = "metric"
    reference = "Vinyals et al. 2016, arXiv:1606.04080"
    summary = "Classifies a query by attention over the support set's embeddings."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = MatchingNetworksHyperparameters
    recipe = Recipe(steps=2200, ways=20, queries=5, validate_every=550)

    hp: MatchingNetworksHyperparameters

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The state is the support set: its embeddings (B, S, D), and who is of which class."""
        return {"embedded": support.items.data, "member": class_membership(support)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        if self.hp.distance == "cosine":
            similarities = cosine_similarities(queries.data, state["embedded"])
        else:
            similarities = -squared_distances(queries.data, state["embedded"])  # (B, Q, S)
        scale = self.hp.scale or DEFAULT_SCALE[self.hp.distance]
        return log_class_attention(scale * similarities, state["member"])


def log_class_attention(similarities: Tensor, member: Tensor) -> Tensor:
    """The logarithm of the attention that each class gets.

    Args:
        similarities: (B, Q, S), scaled.
        member: (B, S, N) bool, whether a support item is of a class; padding is of none.

    Returns:
        (B, Q, N) log P(class | query, support), equation (1) with the attention of section 2.1.1:
        P = sum_i a(query, x_i) y_i, a = softmax over i of the similarities.
    """
    # A sum of exponentials a class, then normalised over classes: by logarithms throughout, as the
    # attention of a class may be too small for a float.
    of_class = member.int().argmax(-1)  # (B, S); of padding, which counts nowhere: 0
    real = member.any(-1).unsqueeze(1)  # (B, 1, S)
    similarities = similarities.masked_fill(~real, -torch.inf)
    where = of_class.unsqueeze(1).expand_as(similarities)  # (B, Q, S)
    lowest = similarities.new_full((*similarities.shape[:2], member.shape[-1]), -torch.inf)
    largest = lowest.scatter_reduce(2, where, similarities.detach(), "amax")  # (B, Q, N)
    exponentials = (similarities - largest.gather(2, where)).exp()
    sums = exponentials @ member.to(exponentials.dtype)  # (B, Q, N), each 1 or more
    return (largest + sums.log()).log_softmax(-1)
