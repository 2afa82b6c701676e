"""Matching networks: a query takes the labels of the support items that it resembles."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Equivariance,
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
    full_context: Annotated[
        bool, Field(description="embed items in the context of the support set (FCE)")
    ] = False
    processing_steps: Annotated[
        int, Field(ge=1, le=100, description="K, how often a query reads the support set, with FCE")
    ] = 5


class MatchingNetworks(EmbeddingAlgorithm):
    """Matching networks, with and without full-context embeddings.

    Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra, "Matching
    Networks for One Shot Learning", 2016, https://arxiv.org/abs/1606.04080

    A query attends to the support items by a softmax over similarities of embeddings, and the
    probability of a class is the attention that its items get. Nothing is fitted at test time, and
    training episodes are built like test episodes.

    The logits are log probabilities: their softmax is the paper's equation (1).

    With `full_context`, items are embedded in the context of the support set (section 2.1.2 and
    appendix A): a bidirectional LSTM goes over the support set, and an attention LSTM reads from it
    in K steps for each query. Who is first in the support set then matters.

    Differs: f and g share one backbone. The paper's softmax has no scale; over cosines, which lie
    in [-1, 1], it can hardly become certain, hence 10. The paper doesn't say what the attention
    LSTM starts from: here h_0 is the query's embedding, which is (4) with nothing read yet, and c_0
    is zero; nor K, for which others take the number of support items. The support set is read in
    the order in which it comes.
    """

    name = "matching-networks"
    family = "metric"
    reference = "Vinyals et al. 2016, arXiv:1606.04080"
    summary = "Classifies a query by attention over the support set's embeddings."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = MatchingNetworksHyperparameters
    recipe = Recipe(steps=2200, ways=20, queries=5, validate_every=550)

    hp: MatchingNetworksHyperparameters

    @classmethod
    def equivariances(cls, hp: Any) -> frozenset[Equivariance]:
        """Full-context embeddings hang on the order in which the support set is read."""
        return cls.equivariant_to - {"support-order"} if hp.full_context else cls.equivariant_to

    def build(self) -> None:
        size, steps = self.backbone.feature_dim, self.hp.processing_steps
        self.context = FullContext(size, steps) if self.hp.full_context else None

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The state is the support set: its embeddings (B, S, D), and who is of which class."""
        embedded, member = support.items.data, class_membership(support)
        if self.context is not None:
            embedded = self.context.support(embedded, member.any(-1))
        return {"embedded": embedded, "member": member}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        embedded, member, asked = state["embedded"], state["member"], queries.data
        if self.context is not None:
            asked = self.context.queries(asked, embedded, member.any(-1))
        if self.hp.distance == "cosine":
            similarities = cosine_similarities(asked, embedded)
        else:
            similarities = -squared_distances(asked, embedded)  # (B, Q, S)
        scale = self.hp.scale or DEFAULT_SCALE[self.hp.distance]
        return log_class_attention(scale * similarities, member)


class FullContext(nn.Module):
    """Full-context embeddings, appendix A; equations are numbered as there.

    Args:
        size: D, of an embedding, and of all states.
        steps: K.
    """

    def __init__(self, size: int, steps: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(size, size, batch_first=True)
        self.backwards = nn.LSTM(size, size, batch_first=True)
        # The paper's hidden state is [h, r]. A cell that is given r as an input adds up the same
        # terms.
        self.reader = nn.LSTMCell(2 * size, size)
        self.steps = steps

    def support(self, items: Tensor, real: Tensor) -> Tensor:
        """g(x_i, S) = h->_i + h<-_i + g'(x_i), section A.2; (B, S, D) to (B, S, D).

        Args:
            items: g', the embeddings of the support sets.
            real: (B, S) bool, which items are no padding.
        """
        forwards = states_over(self.forwards, items, real)
        backwards = states_over(self.backwards, items.flip(1), real.flip(1)).flip(1)
        return forwards + backwards + items

    def queries(self, queries: Tensor, support: Tensor, real: Tensor) -> Tensor:
        """f(x, S) = attLSTM(f'(x), g(S), K), section A.1, each query by itself.

        Args:
            queries: (B, Q, D), f'.
            support: (B, S, D), g.
            real: (B, S) bool.
        """
        hidden, cell = queries, torch.zeros_like(queries).flatten(0, 1)
        for _ in range(self.steps):
            alike = (hidden @ support.mT).masked_fill(~real.unsqueeze(1), -torch.inf)
            read = alike.softmax(-1) @ support  # (6), (5)
            inputs = torch.cat([queries, read], dim=-1).flatten(0, 1)
            after, cell = self.reader(inputs, (hidden.flatten(0, 1), cell))  # (3)
            hidden = after.view_as(queries) + queries  # (4)
        return hidden


def states_over(lstm: nn.LSTM, items: Tensor, real: Tensor) -> Tensor:
    """(B, S, D) hidden states of an LSTM that reads the real items in their order.

    Args:
        items: (B, S, D).
        real: (B, S) bool; what comes out for padding means nothing.
    """
    places = (~real).int().argsort(dim=1, stable=True)  # padding last, where nothing follows it
    places = places.unsqueeze(-1).expand_as(items)
    states, _ = lstm(items.gather(1, places))
    return torch.zeros_like(states).scatter(1, places, states)


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
