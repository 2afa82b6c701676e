"""What training reads: step -> batch, a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metabench.api.items import EpisodeBatch, ItemBatch, PyTree
from metabench.api.recipe import Recipe
from metabench.engine.build import training_shape
from metabench.engine.gather import Ids, ItemStore, training_batch
from metabench.engine.numerics import ITEMS_A_CHUNK
from metabench.episodes.protocol import Protocol
from metabench.episodes.random import Stream, stream_key
from metabench.episodes.source import EpisodeIndices, EpisodeSource, training_key

EPISODES_AHEAD = 64
"""Episodes are drawn this many at a time: drawing is vectorised, gathering is not kept."""

Validate = Callable[[int], float]
"""`validate(episodes)` -> mean score of the algorithm as it stands, on meta-validation."""


@dataclass
class TrainingData:
    """What training reads.

    Attributes:
        store: the meta-training split, rotated where rotations are classes.
        protocol: fills in what the recipe leaves open.
        validate: None where there is no meta-validation split.
    """

    store: ItemStore
    protocol: Protocol
    validate: Validate | None = None


class EpisodeFeed:
    """Batches of training episodes."""

    def __init__(self, data: TrainingData, recipe: Recipe, seed: int, purpose: str) -> None:
        self.store = data.store
        self.shape = training_shape(recipe, data.protocol)
        self.key = training_key(self.store.bank, self.shape, seed, purpose)
        self.meta_batch = recipe.meta_batch
        self._source = EpisodeSource(self.store.bank, self.shape, self.key)
        self._ahead = max(1, EPISODES_AHEAD // recipe.meta_batch) * recipe.meta_batch
        self._drawn: tuple[int, EpisodeIndices | None] = (-1, None)

    @property
    def items_a_step(self) -> int:
        shape = self.shape
        return self.meta_batch * shape.ways * (shape.shots + shape.queries)

    def batch(self, step: int) -> tuple[list[int], EpisodeBatch]:
        """The numbers of the step's episodes, and the episodes."""
        first = step * self.meta_batch
        block, place = divmod(first, self._ahead)
        number, drawn = self._drawn
        if number != block or drawn is None:
            start = block * self._ahead
            drawn = self._source.draw(range(start, start + self._ahead))
            self._drawn = (block, drawn)
        here = EpisodeIndices(*(field[place : place + self.meta_batch] for field in drawn))
        return here.numbers.tolist(), training_batch(here, self.store, self.shape.ways)


class BatchFeed:
    """Batches of items with the training classes' ids.

    Each epoch is a random permutation of all items (and of their quarter turns where rotations
    are classes); an incomplete last batch is left out.
    """

    def __init__(self, data: TrainingData, recipe: Recipe, seed: int, purpose: str) -> None:
        self.store = data.store
        bank = self.store.bank
        self.total = bank.n_items * bank.views
        self.items_a_step = min(recipe.batch_size, self.total)
        self.key = stream_key("batches", bank.digest, bank.split, bank.views, seed, purpose)
        self._stream = Stream(self.key)
        self._class_of = np.repeat(np.arange(len(bank.names)), bank.class_sizes)
        self._epoch: tuple[int, Ids | None] = (-1, None)

    def batch(self, step: int) -> tuple[PyTree, Tensor]:
        """(items (n, ...), class ids (n,)) of that step."""
        epoch, place = divmod(step, self.total // self.items_a_step)
        number, order = self._epoch
        if number != epoch or order is None:
            order = np.argsort(self._stream.words(epoch, self.total), kind="stable")
            self._epoch = (epoch, order)
        chosen = order[place * self.items_a_step : (place + 1) * self.items_a_step]
        return self._gathered(chosen)

    def _gathered(self, chosen: Ids) -> tuple[PyTree, Tensor]:
        """Items and classes of positions among all items times views."""
        views = self.store.bank.views
        items, turns = np.divmod(chosen, views)
        classes = self._class_of[items] * views + turns
        data, [known] = self.store.gather_beside(items, turns, classes)
        return data, known

    def everything(self, with_labels: bool, at_once: int = ITEMS_A_CHUNK) -> Iterator[ItemBatch]:
        """The whole split in its stored order, each item once a view, `at_once` items at a time."""
        for start in range(0, self.total, at_once):
            chosen = np.arange(start, min(start + at_once, self.total))
            data, classes = self._gathered(chosen)
            yield ItemBatch(data, classes if with_labels else None)
