"""Base classes that say what an algorithm is: one of embeddings, or one written for one episode."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm, query_cross_entropy
from metabench.api.context import Context
from metabench.api.items import (
    EpisodeBatch,
    Items,
    PyTree,
    Support,
    flatten_sets,
    leading_size,
    tree_map,
    unflatten_sets,
)
from metabench.engine.lift import over_tasks


class EmbeddingAlgorithm(Algorithm):
    """An algorithm that reads only embeddings, of a backbone that adaptation leaves alone.

    `adapt` and `predict` receive embeddings as the items' data: (B, S, D), or (B, S, C, H, W) where
    `embed` returns maps. In evaluation the engine embeds each item of a split once, however
    many episodes use it.
    """

    def embed(self, data: PyTree) -> Tensor:
        """Embeddings (n, ...) of items (n, ...); each depends on its own item only, at test."""
        embedded: Tensor = self.backbone(data)
        return embedded

    def embed_sets(self, items: Items) -> Items:
        """The same items with embeddings (B, S, ...) as their data."""
        sets = leading_size(items.data)
        return items._replace(data=unflatten_sets(self.embed(flatten_sets(items.data)), sets))

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """Cross-entropy of the queries; support and queries pass the backbone as one batch."""
        support, queries = self.embed_episode(batch)
        logits = self.predict(self.adapt(support, ctx), queries, ctx)
        return query_cross_entropy(logits, batch.query_targets)

    def embed_episode(self, batch: EpisodeBatch) -> tuple[Support, Items]:
        """Support and queries embedded in one pass, so that batch norm sees them together."""
        support = batch.support.items
        joint = tree_map(lambda s, q: torch.cat([s, q], dim=1), support.data, batch.queries.data)
        embedded = self.embed_sets(Items(joint)).data  # (B, S + Q, ...)
        size = batch.support.targets.values.shape[1]
        return (
            batch.support._replace(items=support._replace(data=embedded[:, :size])),
            batch.queries._replace(data=embedded[:, size:]),
        )


class EpisodeFunction(Algorithm):
    """An algorithm written as a function of one episode: the shortest way to contribute one.

    It sees all queries of an episode together, so it is inductive only if `episode` treats each
    query by itself; the declared mode is verified.
    """

    @abstractmethod
    def episode(self, support: PyTree, labels: Tensor, queries: PyTree, ways: int) -> Tensor:
        """Predictions (Q, ways) for one episode.

        Args:
            support: items (S, ...).
            labels: (S,) int64, 0 to ways - 1.
            queries: items (Q, ...).
            ways: the number of classes.
        """

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The state is the support set itself; the work is done in `predict`."""
        labels = support.targets.values
        # The ways of this call, as a shape: training may have more of them than the test.
        ids = torch.arange(support.ways, device=labels.device).expand(len(labels), -1)
        return {"items": support.items.data, "labels": labels, "class_ids": ids}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        ways = state["class_ids"].shape[1]

        def one(items: PyTree, labels: Tensor, asked: PyTree) -> Tensor:
            return self.episode(items, labels, asked, ways)

        logits: Tensor = over_tasks(one, state["items"], state["labels"], queries.data)
        return logits
