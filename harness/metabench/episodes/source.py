"""The episode source: index -> episode, a pure function of (key, index)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
from metabench.episodes.random import Stream, below, sample_without_replacement, stream_key

Ids = NDArray[np.int64]

LANE_EPISODE = 0
"""Words that decide an episode; other lanes of the same index are for algorithms."""


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
    class by class.
    """

    def __init__(self, bank: ClassBank, shape: EpisodeShape, key: bytes) -> None:
        """`key` as made by `stream_key`; see `protocol_key` and `training_key`."""
        self.bank = bank.rotated() if shape.rotation is Rotation.CLASSES else bank
        self.bank.check_serves(shape)
        self.shape = shape
        self.key = key
        self._stream = Stream(key)

    def draw(self, indices: Sequence[int] | Ids) -> EpisodeIndices:
        """The episodes with these numbers, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        ways, shots, queries = self.shape.ways, self.shape.shots, self.shape.queries
        drawn = shots + queries
        # Per episode: `ways` words for classes, `ways` for turns, ways x drawn for items, and
        # ways x queries for the order of the queries.
        counts = np.cumsum([ways, ways, ways * drawn, ways * queries])
        words = np.stack([self._stream.words(int(i), int(counts[-1])) for i in index])
        for_class, for_turn, for_item, for_order = np.split(words, counts[:-1], axis=1)

        classes = sample_without_replacement(for_class, self.bank.n_classes)  # (E, N)
        underlying, turns = np.divmod(classes, self.bank.views)
        if self.shape.rotation is Rotation.EPISODE:
            turns = below(for_turn, 4)

        within = sample_without_replacement(  # (E, N, K+Q), position within the class
            for_item.reshape(len(index), ways, drawn), self.bank.class_sizes[underlying]
        )
        items = self.bank.offsets[underlying][..., None] + within
        labels = np.broadcast_to(np.arange(ways)[None, :, None], items.shape)
        turned = np.broadcast_to(turns[..., None], items.shape)
        # Equal words would tie, and a stable sort breaks ties by position on every machine.
        order = np.argsort(for_order, axis=1, kind="stable")  # (E, N*Q)

        def support(array: Ids) -> Ids:
            return array[:, :, :shots].reshape(len(index), -1)

        def query(array: Ids) -> Ids:
            return np.take_along_axis(array[:, :, shots:].reshape(len(index), -1), order, axis=1)

        return EpisodeIndices(
            index,
            classes,
            *(support(a) for a in (items, turned, labels)),
            *(query(a) for a in (items, turned, labels)),
        )


def protocol_key(bank: ClassBank, protocol: Protocol) -> bytes:
    """The key of a protocol's episodes on a split: no training seed and no episode count in it."""
    facts = {k: v for k, v in protocol.identity.items() if k not in {"episodes", "metric"}}
    return stream_key("protocol", bank.digest, bank.split, facts)


def training_key(bank: ClassBank, shape: EpisodeShape, seed: int, purpose: str) -> bytes:
    """The key of the episodes that one training run (or another purpose) draws."""
    facts = shape.model_dump(mode="json")
    return stream_key("training", bank.digest, bank.split, facts, seed, purpose)
