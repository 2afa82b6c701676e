"""The episode source: index -> episode, a pure function of (key, index)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
from metabench.episodes.random import Stream, Words, below, sample_without_replacement, stream_key

Ids = NDArray[np.int64]

LANE_EPISODE = 0
"""Words that decide an episode; other lanes of the same index are for algorithms."""
WORDS_A_BLOCK = 16_384
"""Episodes are drawn in blocks of so many words, for which all arrays stay in a core's cache."""


class EpisodeIndices(NamedTuple):
    """E episodes as indices into a bank; S = ways x shots, Q = ways x queries.

    Attributes:
        numbers: (E,) the episodes' numbers.
        classes: (E, ways) class ids; position is the label.
        support_items, query_items: (E, S), (E, Q) indices of stored items.
        support_turns, query_turns: the same shapes, quarter turns 0 to 3.
        support_labels, query_labels: the same shapes, 0 to ways - 1.
    """

    numbers: Ids
    classes: Ids
    support_items: Ids
    support_turns: Ids
    support_labels: Ids
    query_items: Ids
    query_turns: Ids
    query_labels: Ids


class EpisodeSource:
    """Draws episodes of one shape from one bank.

    Episode i depends on the key and on i alone: not on what was asked for before, on how many are
    asked for at once, or on anything of the process. The classes come in a random order, so a
    label says nothing; query items are shuffled, so a position says nothing. Support items stand
    class by class. A shape with `dirichlet` has as many queries in all, in proportions of its own
    in each episode.
    """

    def __init__(self, bank: ClassBank, shape: EpisodeShape, key: bytes) -> None:
        """`key` as made by `stream_key`; see `protocol_key` and `training_key`."""
        self.bank = bank.rotated() if shape.rotation is Rotation.CLASSES else bank
        self.bank.check_serves(shape)
        self.shape = shape
        self.key = key
        self._stream = Stream(key)
        self._class_sizes = self.bank.class_sizes

    def draw(self, indices: Sequence[int] | Ids) -> EpisodeIndices:
        """The episodes with these numbers, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        size = max(1, WORDS_A_BLOCK // int(self._counts[-1]))
        blocks = [self._block(index[i : i + size]) for i in range(0, max(1, len(index)), size)]
        if len(blocks) == 1:
            return blocks[0]
        return EpisodeIndices(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    @property
    def _counts(self) -> Ids:
        """Words of an episode up to the end of those for classes, turns, items, order, and cuts."""
        shape = self.shape
        ways, of_class = shape.ways, shape.shots + shape.most_queries
        cuts = 0 if shape.dirichlet is None else ways * shape.dirichlet - 1
        return np.cumsum([ways, ways, ways * of_class, ways * shape.queries, cuts])

    def _block(self, index: Ids) -> EpisodeIndices:
        """Episodes all at once."""
        ways, shots, queries = self.shape.ways, self.shape.shots, self.shape.queries
        episodes, counts = len(index), self._counts
        words = [self._stream.words(i, int(counts[-1])) for i in index.tolist()]
        for_class, for_turn, for_item, for_order, for_cuts = np.split(
            np.stack(words), counts[:-1], axis=1
        )

        classes = sample_without_replacement(for_class, self.bank.n_classes)  # (E, N)
        underlying, turns = np.divmod(classes, self.bank.views)
        if self.shape.rotation is Rotation.EPISODE:
            turns = below(for_turn, 4)

        within = sample_without_replacement(  # (E, N, K+Q), position within the class
            for_item.reshape(episodes, ways, -1), self._class_sizes[underlying]
        )
        items = self.bank.offsets[underlying][..., None] + within  # (E, N, K + most queries)
        if self.shape.dirichlet is None:
            labels = np.tile(np.repeat(np.arange(ways), queries), (episodes, 1))  # (E, N*Q)
            asked = items[:, :, shots:].reshape(episodes, -1)
        else:
            labels, place = in_proportion(dirichlet_counts(for_cuts, ways, ways * queries))
            asked = items[np.arange(episodes)[:, None], labels, shots + place]
        # Equal words would tie, and a stable sort breaks ties by position on every machine.
        order = np.argsort(for_order, axis=1, kind="stable")  # (E, N*Q)

        support_labels = np.tile(np.repeat(np.arange(ways), shots), (episodes, 1))
        query_labels = np.take_along_axis(labels, order, axis=1)
        return EpisodeIndices(
            index,
            classes,
            items[:, :, :shots].reshape(episodes, -1),
            np.repeat(turns, shots, axis=1),
            support_labels,
            np.take_along_axis(asked, order, axis=1),
            np.take_along_axis(turns, query_labels, axis=1),
            query_labels,
        )


def dirichlet_counts(words: Words, classes: int, total: int) -> Ids:
    """How many of `total` each class gets, in proportions from a symmetric Dirichlet distribution.

    N * alpha - 1 uniform cuts part the unit interval into pieces of a Dirichlet(1) law, and alpha
    neighbours together have the law Dirichlet(alpha): whole numbers are enough, so every machine
    draws the same. What rounding down leaves over goes to the largest remainders.

    Args:
        words: (E, classes * alpha - 1) raw words.
        classes: N.
        total: under 2**31.

    Returns:
        (E, classes), each row summing to `total`.
    """
    cuts = np.sort(words >> np.uint64(32), axis=1).astype(np.int64)
    ends = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1 << 32)))
    pieces = np.diff(ends, axis=1)
    shares = pieces.reshape(len(words), classes, -1).sum(-1) * total  # of 2**32 a unit
    counts, remainder = shares >> 32, shares & ((1 << 32) - 1)
    rank = np.argsort(np.argsort(-remainder, axis=1, kind="stable"), axis=1)
    found: Ids = counts + (rank < total - counts.sum(1, keepdims=True))
    return found


def in_proportion(counts: Ids) -> tuple[Ids, Ids]:
    """Labels class by class, `counts` (E, N) of each, and the place of each within its class."""
    ends = np.cumsum(counts, axis=1)
    place = np.arange(ends[0, -1])  # every row has as many
    labels = (place[None, :, None] >= ends[:, None, :]).sum(-1)
    starts = np.take_along_axis(ends - counts, labels, axis=1)
    return labels, place - starts


def protocol_key(bank: ClassBank, protocol: Protocol) -> bytes:
    """The key of a protocol's episodes on a split: no training seed and no episode count in it."""
    facts = {k: v for k, v in protocol.identity.items() if k not in {"episodes", "metric"}}
    return stream_key("protocol", bank.digest, bank.split, facts)


def training_key(bank: ClassBank, shape: EpisodeShape, seed: int, purpose: str) -> bytes:
    """The key of the episodes that one training run (or another purpose) draws."""
    return stream_key("training", bank.digest, bank.split, shape.identity, seed, purpose)
