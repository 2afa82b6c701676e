"""Tasks for `Collect` and `Measure`: whole classes where asked for, each item embedded once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.items import EpisodeBatch, Items, Support, Targets
from metabench.api.phases import Collect, Measure
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.chunks import KEPT
from metabench.engine.evaluate import embedded_split
from metabench.engine.feed import EpisodeFeed, TrainingData
from metabench.engine.gather import Ids, ItemStore, labels, training_batch
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Rotation
from metabench.episodes.source import EpisodeIndices


class Tasks(NamedTuple):
    """B tasks: the numbers of their episodes, the episodes, how many items are in them."""

    numbers: list[int]
    batch: EpisodeBatch
    items: int


class TaskFeed:
    """Batches of tasks as a phase asks for them."""

    def __init__(
        self, algorithm: Algorithm, phase: Collect | Measure, data: TrainingData, seed: int
    ) -> None:
        recipe = phase.recipe
        if phase.whole_classes:
            recipe = recipe.model_copy(update={"queries": 0})
        self._feed = EpisodeFeed(data, recipe, seed, phase.name)
        self.key = self._feed.key
        self._store, self._ways = data.store, self._feed.shape.ways
        self._whole_classes = phase.whole_classes
        self._embedded: EmbeddedOnce | None = None
        if isinstance(algorithm, EmbeddingAlgorithm):
            turned = self._feed.bank.views > 1 or self._feed.shape.rotation is not Rotation.NONE
            self._embedded = EmbeddedOnce(algorithm, self._store, turned)

    def tasks(self, step: int) -> Tasks:
        """Those of a step."""
        drawn = self._feed.drawn(step)
        real = np.ones(drawn.query_items.shape, dtype=bool)
        if self._whole_classes:
            drawn, real = with_whole_classes(drawn, self._feed.bank)
        if self._embedded is None:
            batch = training_batch(drawn, self._store, self._ways)
        else:
            batch = self._of_embeddings(drawn, self._embedded)
        if not real.all():
            mask = torch.from_numpy(real).to(self._store.device)
            batch = batch._replace(
                queries=batch.queries._replace(mask=mask),
                query_targets=batch.query_targets._replace(mask=mask),
            )
        items = drawn.support_items.size + int(real.sum())
        return Tasks(drawn.numbers.tolist(), batch, items)

    def _of_embeddings(self, drawn: EpisodeIndices, embedded: EmbeddedOnce) -> EpisodeBatch:
        """As `training_batch`, with embeddings (B, S, ...) as the items' data."""
        device, size = self._store.device, drawn.support_items.shape[1]
        items = np.concatenate([drawn.support_items, drawn.query_items], axis=1)
        turns = np.concatenate([drawn.support_turns, drawn.query_turns], axis=1)
        found = embedded.of(items, turns)  # (B, S + Q, ...)
        known = Targets(labels(drawn.support_labels, device))
        return EpisodeBatch(
            Support(Items(found[:, :size]), known, self._ways),
            Items(found[:, size:]),
            Targets(labels(drawn.query_labels, device)),
            labels(drawn.classes, device),
        )


def with_whole_classes(
    drawn: EpisodeIndices, bank: ClassBank
) -> tuple[EpisodeIndices, NDArray[np.bool_]]:
    """The same episodes with all other items of their classes as queries, class by class.

    Returns:
        the episodes; and which of their queries (E, Q) are real: where an episode's classes have
        fewer items than another's, the rest of its queries is the split's first item.
    """
    underlying = drawn.classes // bank.views
    of_support = drawn.support_items.reshape(*drawn.classes.shape, -1)  # (E, N, K)
    turn = drawn.support_turns.reshape(of_support.shape)[..., 0]
    items: list[Ids] = []
    targets: list[Ids] = []
    for classes, known in zip(underlying, of_support, strict=True):
        others = [
            np.setdiff1d(np.arange(bank.offsets[c], bank.offsets[c + 1]), support)
            for c, support in zip(classes, known, strict=True)
        ]
        items.append(np.concatenate(others))
        targets.append(np.repeat(np.arange(len(others)), [len(part) for part in others]))
    counts = np.array([len(part) for part in items])
    real = np.arange(counts.max()) < counts[:, None]  # (E, Q)
    found, asked = (
        np.stack([np.pad(part, (0, real.shape[1] - len(part))) for part in parts])
        for parts in (items, targets)
    )
    turns = np.take_along_axis(turn, asked, axis=1)
    return drawn._replace(query_items=found, query_turns=turns, query_labels=asked), real


class EmbeddedOnce:
    """Embeddings of a split's items, each computed when it is first asked for, and kept.

    Where all of a split would be too much to keep, each is computed once a call.
    """

    def __init__(self, algorithm: EmbeddingAlgorithm, store: ItemStore, turned: bool) -> None:
        """`turned`: whether items are asked for in all four quarter turns."""
        self._algorithm, self._store = algorithm, store
        self._rows = store.bank.n_items * (4 if turned else 1)
        self._place = np.full(store.bank.n_items * 4, -1)
        self._table: Tensor | None = None
        self._kept = 0

    def of(self, items: Ids, turns: Ids) -> Tensor:
        """Embeddings (B, S, ...) of items (B, S), turned by so many quarters."""
        codes = items * 4 + turns
        distinct, where = np.unique(codes, return_inverse=True)
        found = self._found(distinct)
        place: Any = labels(where.reshape(codes.shape), self._store.device)
        return found[place]

    def _found(self, codes: Ids) -> Tensor:
        """(n, ...) embeddings of distinct codes."""
        new = codes[self._place[codes] < 0]
        made = self._embed(new) if len(new) else None
        if self._table is None:
            assert made is not None  # nothing is known before the first call
            if self._rows * made[0].nbytes > KEPT:
                return made
            self._table = made.new_empty(self._rows, *made.shape[1:])
        if made is not None:
            self._place[new] = np.arange(self._kept, self._kept + len(new))
            self._table[self._kept : self._kept + len(new)] = made
            self._kept += len(new)
        return self._table[labels(self._place[codes], self._store.device)]

    def _embed(self, codes: Ids) -> Tensor:
        with torch.no_grad():
            return embedded_split(self._algorithm, self._store, codes)
