"""What training reads: step -> batch, a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metabench.api.items import EpisodeBatch, ItemBatch, PyTree, leading_size
from metabench.api.recipe import Recipe
from metabench.engine.build import training_shape
from metabench.engine.gather import Ids, ItemStore, training_batch
from metabench.engine.numerics import ITEMS_A_CHUNK
from metabench.episodes.bank import ClassBank
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
        validate: None where there is no meta-validation split. How often descent calls it is the
            recipe's affair.
        held_out: makes the meta-validation split; None where there is none that is held out.
    """

    store: ItemStore
    protocol: Protocol
    validate: Validate | None = None
    held_out: Callable[[], ItemStore] | None = None


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

    @property
    def bank(self) -> ClassBank:
        """What is drawn from, rotated where rotations are classes."""
        return self._source.bank

    def batch(self, step: int) -> tuple[list[int], EpisodeBatch]:
        """The numbers of the step's episodes, and the episodes."""
        drawn = self.drawn(step)
        return drawn.numbers.tolist(), training_batch(drawn, self.store, self.shape.ways)

    def drawn(self, step: int) -> EpisodeIndices:
        """The step's episodes as indices."""
        first = step * self.meta_batch
        block, place = divmod(first, self._ahead)
        number, drawn = self._drawn
        if number != block or drawn is None:
            start = block * self._ahead
            drawn = self._source.draw(range(start, start + self._ahead))
            self._drawn = (block, drawn)
        return EpisodeIndices(*(field[place : place + self.meta_batch] for field in drawn))


class Epochs:
    """Places among a number of examples, a batch a step.

    Each epoch is a random permutation of all; an incomplete last batch is left out.
    """

    def __init__(self, total: int, at_once: int, key: bytes) -> None:
        self._total, self._at_once = total, at_once
        self._stream = Stream(key)
        self._epoch: tuple[int, Ids | None] = (-1, None)

    def places(self, step: int) -> Ids:
        """(n,) from 0 to the total - 1."""
        epoch, place = divmod(step, self._total // self._at_once)
        number, order = self._epoch
        if number != epoch or order is None:
            order = np.argsort(self._stream.words(epoch, self._total), kind="stable")
            self._epoch = (epoch, order)
        return order[place * self._at_once : (place + 1) * self._at_once]


class ExampleFeed:
    """Batches of what a `Collect` phase made, in epochs."""

    def __init__(
        self, examples: Mapping[str, Tensor], recipe: Recipe, seed: int, purpose: str
    ) -> None:
        self._examples = examples
        total = leading_size(examples) if examples else 0
        self.items_a_step = min(recipe.batch_size, total)
        self.key = stream_key("examples", total, seed, purpose)
        self._epochs = Epochs(total, self.items_a_step, self.key)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Tensors (n, ...) of that step's examples, by name."""
        places = torch.from_numpy(self._epochs.places(step))
        return {name: rows[places.to(rows.device)] for name, rows in self._examples.items()}


class BatchFeed:
    """Batches of items with the training classes' ids.

    An epoch is all items (and their quarter turns where rotations are classes).
    """

    def __init__(self, data: TrainingData, recipe: Recipe, seed: int, purpose: str) -> None:
        self.store = data.store
        bank = self.store.bank
        self.total = bank.n_items * bank.views
        self.items_a_step = min(recipe.batch_size, self.total)
        self.key = stream_key("batches", bank.digest, bank.split, bank.views, seed, purpose)
        self._epochs = Epochs(self.total, self.items_a_step, self.key)
        self._class_of = np.repeat(np.arange(len(bank.names)), bank.class_sizes)

    def batch(self, step: int) -> tuple[PyTree, Tensor]:
        """(items (n, ...), class ids (n,)) of that step."""
        return self._gathered(self._epochs.places(step))

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
