"""Graph neural network: label information flows from support items to a query along edges."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Hyperparameters,
    Items,
    PyTree,
    Recipe,
    Support,
    UsageError,
)
from metabench_plugins.algorithms.classes import class_membership


class GNNHyperparameters(Hyperparameters):
    embedding: Annotated[
        int, Field(ge=1, le=4096, description="numbers that a backbone's features are mapped to")
    ] = 64
    width: Annotated[
        int, Field(ge=2, le=4096, description="hidden units of a kernel; a block adds half as many")
    ] = 32
    blocks: Annotated[
        int, Field(ge=0, le=10, description="blocks before the one that classifies")
    ] = 2


class Kernel(nn.Module):
    """A in the paper: how much each node of a graph listens to each other one.

    Four layers and a last one on the absolute difference of two nodes, a softmax over a node's
    neighbours; (2) and (3) of `GNN`.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        sizes = [features, 2 * width, 2 * width, width, width]
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(after) for _, after in pairs)
        self.last = nn.Linear(width, 1)

    def forward(self, nodes: Tensor, real: Tensor) -> Tensor:
        """(G, n, n) weights, each row summing to 1, 0 on the diagonal and towards padding.

        Args:
            nodes: (G, n, F) nodes of G graphs.
            real: (G, n) bool, which nodes are no padding.
        """
        # The kernel is symmetric, and no node is its own neighbour: each pair is computed once.
        count = nodes.shape[1]
        one, other = torch.triu_indices(count, count, 1, device=nodes.device)
        values = (nodes[:, one] - nodes[:, other]).abs().flatten(0, 1)  # (G * pairs, F)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            values = F.leaky_relu(norm(layer(values)))
        scores = self.last(values).view(len(nodes), -1)  # (2)
        alike = scores.new_full((len(nodes), count, count), -torch.inf)
        alike[:, one, other] = scores
        alike[:, other, one] = scores
        weights: Tensor = alike.masked_fill(~real.unsqueeze(1), -torch.inf).softmax(-1)  # (3)
        return weights


class Block(nn.Module):
    """A kernel and the graph convolution over it, (4)."""

    def __init__(self, features: int, width: int, made: int, *, normed: bool) -> None:
        super().__init__()
        self.kernel = Kernel(features, width)
        self.mix = nn.Linear(2 * features, made)
        self.norm = nn.BatchNorm1d(made) if normed else None

    def forward(self, nodes: Tensor, real: Tensor) -> Tensor:
        """(G, n, F) nodes to (G, n, made)."""
        neighbours = self.kernel(nodes, real) @ nodes
        mixed: Tensor = self.mix(torch.cat([nodes, neighbours], dim=-1))
        return mixed if self.norm is None else self.norm(mixed.flatten(0, 1)).view_as(mixed)


class GNN(EmbeddingAlgorithm):
    """Few-shot learning with graph neural networks.

    Victor Garcia, Joan Bruna, "Few-Shot Learning with Graph Neural Networks", 2018,
    https://arxiv.org/abs/1711.04043

    A query and the support set are the nodes of a graph, a graph for each query (the paper's
    t = 1), so queries know nothing of each other. A node holds an item's embedding and its label h,
    one number a class, all equal for the query (section 4.1). A block (section 4.2) finds the edges
    by a learned kernel, mixes each node with its neighbours, and appends what comes out to the
    node. The last block makes a query's logits. With nodes x_i and all sums over j other than i:

        x_i = (embedding_i, h_i)                                                            (1)
        e_ij = MLP(|x_i - x_j|)                                                             (2)
        A_ij = softmax over j of e_ij                                                       (3)
        y_i = linear(x_i, sum_j A_ij x_j)                                                   (4)
        x_i <- (x_i, leaky ReLU(batch norm(y_i)))                                           (5)

    It treats labels as inputs, so other names for the same classes can change its predictions, and
    it has as many outputs as ways in training.

    Differs: any backbone embeds, its features mapped to `embedding` numbers with batch norm and a
    leaky ReLU as in the authors' network for Omniglot. The query's label is uniform as in the
    paper (the authors' code has zeros). The kernel's batch norm takes the moments of pairs of
    different nodes, each once, where the authors' code has each twice and nodes with themselves.
    In training, batch norm takes padded items, and pairs with them, into its moments where a
    support set has any; one of ways times shots has none. The graph is that of the authors'
    network for mini-ImageNet, with 32 hidden units where they have 96 (a ninth of the work), and
    without the dropout of that network's embedding; theirs for Omniglot has kernels as wide as its
    nodes, dropout in the last one, and batch norm behind the last layer. As theirs, it needs many
    tasks a step: with one it stays at chance for long.
    """

    name = "gnn"
    family = "metric"
    reference = "Garcia and Bruna 2018, arXiv:1711.04043"
    summary = "A graph of the support set and a query, its edges learned, passes labels on."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[Hyperparameters]] = GNNHyperparameters
    recipe = Recipe(steps=1000, queries=3, meta_batch=8, lr=5e-3, validate_every=250)

    hp: GNNHyperparameters

    def build(self) -> None:
        ways, size = self.problem.ways, self.hp.embedding
        if self.problem.train_ways != ways:
            raise UsageError(
                f"gnn has one input and one output a class: it cannot train with "
                f"{self.problem.train_ways} ways and be tested with {ways}",
                "leave the recipe's ways out",
            )
        self.project = nn.Linear(self.backbone.feature_dim, size, bias=False)
        self.project_norm = nn.BatchNorm1d(size)
        width, more = self.hp.width, self.hp.width // 2
        widths = [size + ways + more * number for number in range(self.hp.blocks + 1)]
        self.blocks = nn.ModuleList(Block(f, width, more, normed=True) for f in widths[:-1])
        self.last = Block(widths[-1], width, ways, normed=False)

    def embed(self, data: PyTree) -> Tensor:
        """(n, embedding)."""
        return F.leaky_relu(self.project_norm(self.project(self.backbone(data))))

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The state is the support set: its embeddings (B, S, E), and who is of which class."""
        return {"embedded": support.items.data, "member": class_membership(support)}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        nodes, real = graphs(state["embedded"], state["member"], queries.data)
        for block in self.blocks:
            nodes = torch.cat([nodes, F.leaky_relu(block(nodes, real))], dim=-1)  # (5)
        logits: Tensor = self.last(nodes, real)[:, 0]  # of the query
        return logits.view(*queries.data.shape[:2], -1)  # (B, Q, N)


def graphs(embedded: Tensor, member: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes of a graph for each query, (1), and which of them are real.

    Args:
        embedded: (B, S, E) the support set.
        member: (B, S, N) bool, whether a support item is of a class; padding is of none.
        queries: (B, Q, E).

    Returns:
        (B * Q, 1 + S, E + N) nodes, the query first, and (B * Q, 1 + S) bool.
    """
    ways, asked = member.shape[-1], queries.shape[1]
    unknown = queries.new_full((*queries.shape[:2], ways), 1 / ways)
    query = torch.cat([queries, unknown], dim=-1).unsqueeze(2)  # (B, Q, 1, E + N)
    known = torch.cat([embedded, member.to(embedded.dtype)], dim=-1)  # (B, S, E + N)
    nodes = torch.cat([query, known.unsqueeze(1).expand(-1, asked, -1, -1)], dim=2)
    real = F.pad(member.any(-1), (1, 0), value=True)  # (B, 1 + S)
    return nodes.flatten(0, 1), real.unsqueeze(1).expand(-1, asked, -1).flatten(0, 1)
