"""Evaluation: adapt to the support sets of a split's episodes, predict their queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom, Stage
from metabench.api.items import Items, Support, Targets
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.gather import Ids, ItemStore, labels, queries_of, support_of
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.metrics import Scores, metric
from metabench.engine.numerics import EPISODES_A_CHUNK, ITEMS_A_CHUNK, seed_all
from metabench.episodes.protocol import MetricName
from metabench.episodes.source import EpisodeIndices, EpisodeSource
from metabench.errors import NotANumberError, PluginError

Tick = Callable[[int, int], None]
"""`tick(done, total)` episodes."""


class Outcome(NamedTuple):
    """What E episodes of Q queries came to.

    Attributes:
        targets, predicted: (E, Q) labels 0 to ways - 1.
        classes: (E, Q) the class ids behind the targets.
    """

    targets: Ids
    predicted: Ids
    classes: Ids

    def scores(self, by: MetricName) -> Scores:
        """(E,) scores of the episodes under a protocol's metric."""
        return metric(by)(self.predicted, self.targets)

    def score(self, by: MetricName) -> float:
        """Their mean."""
        return float(self.scores(by).mean())


def evaluate(
    algorithm: Algorithm,
    source: EpisodeSource,
    store: ItemStore,
    episodes: int,
    stage: Stage,
    tick: Tick | None = None,
) -> Outcome:
    """Run the first `episodes` episodes of a source; the algorithm never sees a query target.

    Raises:
        NotANumberError: a prediction is not finite.
        PluginError: its predictions are of a kind that cannot be scored.
    """
    if algorithm.output not in {"logits", "scores"}:
        raise PluginError(
            f"{algorithm.name} predicts {algorithm.output!r}, which no protocol can score yet",
            "predict one logit or score a class",
        )
    was_training = algorithm.training
    algorithm.eval()
    # Whatever training left in the global generators must not be seen here.
    seed_all("evaluate", source.key.hex())
    predicted: list[Ids] = []
    drawn = _joined(source.draw(range(i, j)) for i, j in _chunks(episodes, 1000))
    try:
        with torch.no_grad():
            feed = _feed(algorithm, drawn, store, source.shape.ways)
            for chunk, support, queries in feed:
                rng = EpisodeRandom(source.key, chunk.numbers.tolist(), store.device)
                ctx = Context(stage, rng)
                logits = algorithm.predict(algorithm.adapt(support, ctx), queries, ctx)
                predicted.append(_predicted(logits, algorithm.name))
                if tick is not None:
                    tick(sum(map(len, predicted)), episodes)
    finally:
        algorithm.train(was_training)
    classes = np.take_along_axis(drawn.classes, drawn.query_labels, axis=1)
    return Outcome(drawn.query_labels, np.concatenate(predicted), classes)


def episodes_a_chunk(algorithm: Algorithm) -> int:
    """How many episodes are evaluated at once: by kind, whatever the machine."""
    if isinstance(algorithm, EmbeddingAlgorithm):
        return EPISODES_A_CHUNK["embedding"]
    kind = "gradient" if isinstance(algorithm, GradientAlgorithm) else "other"
    return EPISODES_A_CHUNK[kind]


def embedded_split(algorithm: EmbeddingAlgorithm, store: ItemStore, codes: Ids) -> Tensor:
    """(n, ...) embeddings of items given as item * 4 + quarter turns, a chunk at a time."""
    parts = []
    for start, stop in _chunks(len(codes), ITEMS_A_CHUNK):
        items, turns = np.divmod(codes[start:stop], 4)
        parts.append(algorithm.embed(store.gather(items, turns)))
    return torch.cat(parts)


Feed = Iterator[tuple[EpisodeIndices, Support, Items]]


def _feed(algorithm: Algorithm, drawn: EpisodeIndices, store: ItemStore, ways: int) -> Feed:
    size = episodes_a_chunk(algorithm)
    chunks = [
        EpisodeIndices(*(field[i:j] for field in drawn))
        for i, j in _chunks(len(drawn.numbers), size)
    ]
    if not isinstance(algorithm, EmbeddingAlgorithm):
        for chunk in chunks:
            yield chunk, support_of(chunk, store, ways), queries_of(chunk, store)
        return
    # Each item that any episode uses is embedded once.
    of_support = drawn.support_items * 4 + drawn.support_turns
    of_queries = drawn.query_items * 4 + drawn.query_turns
    codes, where = np.unique(np.concatenate([of_support, of_queries], axis=1), return_inverse=True)
    embedded = embedded_split(algorithm, store, codes)
    place = labels(where.reshape(len(drawn.numbers), -1), store.device)
    split = of_support.shape[1]
    for number, chunk in enumerate(chunks):
        rows = place[number * size : number * size + len(chunk.numbers)]
        targets = Targets(labels(chunk.support_labels, store.device))
        support = Support(Items(embedded[rows[:, :split]]), targets, ways)
        yield chunk, support, Items(embedded[rows[:, split:]])


def _predicted(logits: Tensor, name: str) -> Ids:
    if not bool(torch.isfinite(logits).all()):
        raise NotANumberError(f"{name} predicted values that are not finite")
    return logits.argmax(-1).cpu().numpy()


def _joined(parts: Iterator[EpisodeIndices]) -> EpisodeIndices:
    return EpisodeIndices(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _chunks(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]
