"""Evaluation: adapt to the support sets of a split's episodes, predict their queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom, Stage
from metabench.api.items import (
    Items,
    PyTree,
    Support,
    Targets,
    flatten_sets,
    leading_size,
    tree_map,
    unflatten_sets,
)
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.chunks import KEPT, MOST_EPISODES, MOST_ITEMS, found_once, that_fit
from metabench.engine.gather import Ids, ItemStore, labels, queries_of, support_of
from metabench.engine.metrics import Scores, metric
from metabench.engine.numerics import seed_all
from metabench.engine.precision import at_least_float32
from metabench.engine.probabilities import Codes, codes_of
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
        surprise: (E, Q) codes of the probability that the target was given, and
        confidence: of that which was predicted, see `metabench.engine.probabilities`; None where
            the algorithm gives scores, which are no probabilities.
    """

    targets: Ids
    predicted: Ids
    classes: Ids
    surprise: Codes | None = None
    confidence: Codes | None = None

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
    told: list[_Told] = []
    drawn = _joined(source.draw(range(i, j)) for i, j in _chunks(episodes, 1000))
    sets: _Raw | _Embedded = _Raw(drawn, store, source.shape.ways)
    if isinstance(algorithm, EmbeddingAlgorithm):
        sets = _Embedded(drawn, store, source.shape.ways, algorithm)
    predictor = _Predictor(algorithm, source, stage, drawn, store.device)
    try:
        with torch.no_grad():
            sets.prepare(0, 1)
            size = predictor.fit(*sets.of(0, 1))
            # Whatever was drawn from the global generators before must not be seen here.
            seed_all("evaluate", source.key.hex())
            for first, last in sets.groups():
                sets.prepare(first, last)
                for start, stop in _chunks(last - first, size):
                    here = first + start, first + stop
                    logits = predictor.predict(*sets.of(*here), *here)
                    targets = drawn.query_labels[here[0] : here[1]]
                    told.append(_told(logits, targets, algorithm))
                    if tick is not None:
                        tick(first + stop, episodes)
    finally:
        algorithm.train(was_training)
    classes = np.take_along_axis(drawn.classes, drawn.query_labels, axis=1)
    predicted = np.concatenate([part.predicted for part in told])
    surprise = _whole([part.surprise for part in told])
    confidence = _whole([part.confidence for part in told])
    return Outcome(drawn.query_labels, predicted, classes, surprise, confidence)


class _Told(NamedTuple):
    """What was predicted for some episodes, and how sure that was."""

    predicted: Ids
    surprise: Codes | None
    confidence: Codes | None


class _Predictor:
    """Adapts to the support sets of drawn episodes, and predicts their queries."""

    def __init__(
        self,
        algorithm: Algorithm,
        source: EpisodeSource,
        stage: Stage,
        drawn: EpisodeIndices,
        device: torch.device,
    ) -> None:
        self._algorithm, self._stage, self._device = algorithm, stage, device
        self._key, self._numbers = source.key, drawn.numbers
        self._queries = self._queries_at_once = drawn.query_labels.shape[1]

    def fit(self, support: Support, queries: Items) -> int:
        """How many episodes are computed at once, given the first.

        An inductive algorithm is asked for a part of an episode's queries at a time where all of
        them do not fit, as they can't know of each other. What adapting holds is its own affair.
        """
        if self._algorithm.inference_mode(self._algorithm.hp) == "inductive":
            fit = self._found("queries", support, queries, self._queries_that_fit)
            if fit < self._queries:  # all of them at once, for a look, would be too much already
                self._queries_at_once = fit
                return 1
        return self._found("episodes", support, queries, self._episodes_that_fit)

    def _found(
        self, what: str, support: Support, queries: Items, find: Callable[[Support, Items], int]
    ) -> int:
        asked = (what, support, queries)
        return found_once(self._algorithm, asked, self._device.type, lambda: find(support, queries))

    def _queries_that_fit(self, support: Support, queries: Items) -> int:
        ctx, few = self._context(0, 1), min(2, self._queries)
        state, part = self._algorithm.adapt(support, ctx), _cut(queries, 0, few)
        all_of_them = 1 << (self._queries - 1).bit_length()
        return that_fit(
            lambda: self._algorithm.predict(state, part, ctx), few, self._device.type, all_of_them
        )

    def _episodes_that_fit(self, support: Support, queries: Items) -> int:
        return that_fit(
            lambda: self.predict(support, queries, 0, 1), 1, self._device.type, MOST_EPISODES
        )

    def predict(self, support: Support, queries: Items, start: int, stop: int) -> Tensor:
        """(B, Q, ways) predictions for the episodes from `start` up to `stop`."""
        ctx = self._context(start, stop)
        state = self._algorithm.adapt(support, ctx)
        parts = [
            self._algorithm.predict(state, _cut(queries, first, last), ctx)
            for first, last in _chunks(self._queries, self._queries_at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _context(self, start: int, stop: int) -> Context:
        rng = EpisodeRandom(self._key, self._numbers[start:stop].tolist(), self._device)
        return Context(self._stage, rng)


class _Raw:
    """The support sets and queries of drawn episodes, as items."""

    def __init__(self, drawn: EpisodeIndices, store: ItemStore, ways: int) -> None:
        self.drawn, self.store, self.ways = drawn, store, ways

    def groups(self) -> list[tuple[int, int]]:
        """From and up to which episode there is something to prepare together."""
        return [(0, len(self.drawn.numbers))]

    def prepare(self, start: int, stop: int) -> None:
        """Make ready what the episodes of a group have in common."""

    def of(self, start: int, stop: int) -> tuple[Support, Items]:
        """Those of the episodes from `start` up to `stop`, which lie in what was prepared."""
        chunk = EpisodeIndices(*(field[start:stop] for field in self.drawn))
        return support_of(chunk, self.store, self.ways), queries_of(chunk, self.store)


class _Embedded:
    """The same as embeddings: each item that any episode of a group uses is embedded once."""

    def __init__(
        self, drawn: EpisodeIndices, store: ItemStore, ways: int, algorithm: EmbeddingAlgorithm
    ) -> None:
        self.drawn, self.store, self.ways, self.algorithm = drawn, store, ways, algorithm
        of_support = drawn.support_items * 4 + drawn.support_turns
        of_queries = drawn.query_items * 4 + drawn.query_turns
        self._codes = np.concatenate([of_support, of_queries], axis=1)
        self._split = of_support.shape[1]
        self._first = 0
        self._embedded = self._place = torch.empty(0)

    def groups(self) -> list[tuple[int, int]]:
        """All episodes, as a rule; fewer where not all embeddings can be kept."""
        episodes, items = self._codes.shape
        one = embedded_split(self.algorithm, self.store, self._codes[0, :1])
        most = KEPT // max(1, one.nbytes)
        if len(_distinct(self._codes)[0]) <= most:
            return [(0, episodes)]
        return _chunks(episodes, max(1, most // items))

    def prepare(self, start: int, stop: int) -> None:
        self._embedded = torch.empty(0)  # let the last ones go before there are others
        codes, where = _distinct(self._codes[start:stop])
        self._embedded = embedded_split(self.algorithm, self.store, codes)
        self._place = labels(where.reshape(stop - start, -1), self.store.device)
        self._first = start

    def of(self, start: int, stop: int) -> tuple[Support, Items]:
        rows = self._place[start - self._first : stop - self._first]
        targets = Targets(labels(self.drawn.support_labels[start:stop], self.store.device))
        support = Support(Items(self._embedded[rows[:, : self._split]]), targets, self.ways)
        return support, Items(self._embedded[rows[:, self._split :]])


def _cut(items: Items, start: int, stop: int) -> Items:
    """Those from `start` up to `stop` of each set."""
    part: Items = tree_map(lambda x: x[:, start:stop], items)
    return part


def _distinct(codes: Ids) -> tuple[Ids, Ids]:
    """The distinct codes in ascending order, and for each code its place among them.

    By a mark for each possible code: a bank has few against the items of its episodes, which
    `np.unique` would sort.
    """
    seen = np.zeros(int(codes.max()) + 1, dtype=bool)
    seen[codes] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[codes]


def embedded_split(algorithm: EmbeddingAlgorithm, store: ItemStore, codes: Ids) -> Tensor:
    """(n, ...) embeddings of items given as item * 4 + quarter turns, a chunk at a time."""

    def embed(start: int, stop: int) -> Tensor:
        items, turns = np.divmod(codes[start:stop], 4)
        return algorithm.embed(store.gather(items, turns))

    few = store.gather(*np.divmod(codes[: min(2, len(codes))], 4))
    return _in_chunks(algorithm, few, embed, len(codes), store.device)


def embedded(algorithm: EmbeddingAlgorithm, items: Items) -> Items:
    """The same items (B, S) with embeddings (B, S, ...) as their data, a chunk at a time."""
    sets, flat = leading_size(items.data), flatten_sets(items.data)

    def embed(start: int, stop: int) -> Tensor:
        return algorithm.embed(tree_map(lambda x: x[start:stop], flat))

    device = next(algorithm.parameters(), torch.empty(0)).device
    few = tree_map(lambda x: x[:2], flat)
    made = _in_chunks(algorithm, few, embed, leading_size(flat), device)
    return items._replace(data=unflatten_sets(made, sets))


def _in_chunks(
    algorithm: EmbeddingAlgorithm,
    few: PyTree,
    embed: Callable[[int, int], Tensor],
    count: int,
    device: torch.device,
) -> Tensor:
    """(count, ...) what `embed(start, stop)` returns of items, each chunk as large as fits.

    Args:
        few: the first items, two where there are as many, for a look at their shapes.
    """

    def find() -> int:
        some = leading_size(few)
        return that_fit(lambda: embed(0, some), some, device.type, MOST_ITEMS)

    size = found_once(algorithm, ("items", few), device.type, find)
    whole: Tensor | None = None
    for start, stop in _chunks(count, size):
        part = embed(start, stop)
        if whole is None:  # filled part by part: joining them would take twice the memory
            whole = part.new_empty(count, *part.shape[1:])
        whole[start:stop] = part
    assert whole is not None  # there are items
    return whole


def _told(logits: Tensor, targets: Ids, algorithm: Algorithm) -> _Told:
    if not bool(torch.isfinite(logits).all()):
        raise NotANumberError(f"{algorithm.name} predicted values that are not finite")
    logits = at_least_float32(logits)
    labels = logits.argmax(-1)
    if algorithm.output != "logits":
        return _Told(labels.cpu().numpy(), None, None)
    log_p = torch.log_softmax(logits, dim=-1)
    true = torch.from_numpy(targets).to(logits.device)
    return _Told(labels.cpu().numpy(), codes_of(log_p, true), codes_of(log_p, labels))


def _whole(parts: list[Codes | None]) -> Codes | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


def _joined(parts: Iterator[EpisodeIndices]) -> EpisodeIndices:
    return EpisodeIndices(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _chunks(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]
