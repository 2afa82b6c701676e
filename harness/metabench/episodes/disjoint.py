"""Disjoint episodes: each item of a split is used in one episode at most.

The usual test episodes overlap: a thousand of them use the same items over and over, so their
interval says nothing of other items. Episodes drawn without replacement (Lafargue et al. 2024,
arXiv:2409.02850) do, and their number is what the data allow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
from metabench.episodes.random import Stream, below, stream_key
from metabench.episodes.source import EpisodeIndices, EpisodeSource, Ids, dirichlet_counts


class DisjointSource(EpisodeSource):
    """The disjoint episodes of a protocol on a split, `count` of them; drawn like any others.

    Each episode takes the classes with the most unused items, in a random order; ties fall by
    chance. The last is the one before the first for which some class has too few left. A class
    recurs in several episodes, with other items. With rotations, a class (or an item, where
    rotations are classes) is met in one random rotation of the four.
    """

    def __init__(self, bank: ClassBank, protocol: Protocol) -> None:
        """No more than the protocol's own number of test episodes are drawn."""
        facts = {k: v for k, v in protocol.identity.items() if k not in {"episodes", "metric"}}
        super().__init__(
            bank, protocol.shape, stream_key("disjoint", bank.digest, bank.split, facts)
        )
        self._drawn = _Drawing(self.bank, self.shape, self.key).episodes(protocol.episodes)

    @property
    def count(self) -> int:
        """How many there are; may be 0."""
        return len(self._drawn.numbers)

    def draw(self, indices: Sequence[int] | Ids) -> EpisodeIndices:
        """The episodes with these numbers, under `count`, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        return EpisodeIndices(*(field[index] for field in self._drawn))


class _Drawing:
    """Draws one disjoint episode after the other."""

    def __init__(self, bank: ClassBank, shape: EpisodeShape, key: bytes) -> None:
        self._bank, self._shape = bank, shape
        self._words = Stream(key)
        self._of_class = Stream(stream_key("disjoint items", key.hex()))
        self._left = bank.class_sizes.copy()
        self._order: dict[int, Ids] = {}

    def episodes(self, most: int) -> EpisodeIndices:
        """As many as there are, `most` at the most."""
        shape = self._shape
        drawn: list[EpisodeIndices] = []
        if shape.ways <= len(self._left):
            while len(drawn) < most and (episode := self._next(len(drawn))) is not None:
                drawn.append(episode)
        if drawn:
            return EpisodeIndices(*(np.stack(field) for field in zip(*drawn, strict=True)))
        support, queries = shape.ways * shape.shots, shape.ways * shape.queries
        sizes = [shape.ways, support, support, support, queries, queries, queries]
        return EpisodeIndices(
            np.zeros(0, dtype=np.int64), *(np.zeros((0, n), dtype=np.int64) for n in sizes)
        )

    def _next(self, number: int) -> EpisodeIndices | None:
        """The next episode without its leading dimension; None where too few items are left."""
        shape, classes = self._shape, len(self._left)
        ways, asked = shape.ways, shape.ways * shape.queries
        cuts = 0 if shape.dirichlet is None else ways * shape.dirichlet - 1
        words = self._words.words(number, classes + 2 * ways + asked + cuts)
        for_tie, for_label, for_turn, for_order, for_cuts = np.split(
            words, np.cumsum([classes, ways, ways, asked])
        )
        chosen = np.lexsort((for_tie, -self._left))[:ways]  # the last key counts first
        if shape.dirichlet is None:
            counts = np.full(ways, shape.queries)
        else:  # the most queries where the most items are left
            counts = -np.sort(-dirichlet_counts(for_cuts[None], ways, asked)[0])
        if (self._left[chosen] < shape.shots + counts).any():
            return None
        label = np.argsort(for_label, kind="stable")
        chosen, counts = chosen[label], counts[label]
        items = [
            self._take(int(c), shape.shots + int(n)) for c, n in zip(chosen, counts, strict=True)
        ]
        turned = shape.rotation is not Rotation.NONE or self._bank.views > 1
        turns = below(for_turn, 4) if turned else np.zeros(ways, dtype=np.int64)
        views = self._bank.views
        support_labels = np.repeat(np.arange(ways), shape.shots)
        order = np.argsort(for_order, kind="stable")
        query_labels = np.repeat(np.arange(ways), counts)[order]
        return EpisodeIndices(
            np.asarray(number),
            chosen * views + turns if views > 1 else chosen,
            np.concatenate([row[: shape.shots] for row in items]),
            turns[support_labels],
            support_labels,
            np.concatenate([row[shape.shots :] for row in items])[order],
            turns[query_labels],
            query_labels,
        )

    def _take(self, of: int, count: int) -> Ids:
        """The next unused items of a class, whose items come in a random order."""
        if of not in self._order:
            words = self._of_class.words(of, len(self._items(of)))
            self._order[of] = self._items(of)[np.argsort(words, kind="stable")]
        used = len(self._order[of]) - int(self._left[of])
        self._left[of] -= count
        return self._order[of][used : used + count]

    def _items(self, of: int) -> Ids:
        return np.arange(self._bank.offsets[of], self._bank.offsets[of + 1])
