"""Timing of adapt and predict: one episode, batch 1, from raw items, warmed up, alone."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, Support
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.gather import ItemStore, queries_of, support_of
from metabench.episodes.source import EpisodeSource

WARM_UP = 3
EPISODES = 15


@dataclass(frozen=True)
class Times:
    """Milliseconds an episode, over `episodes` episodes.

    Attributes:
        adapt_ms: median; embeds the support set, where the algorithm is one of embeddings.
        predict_ms: median, all ways x queries together; embeds the queries likewise.
        adapt_iqr_ms, predict_iqr_ms: interquartile ranges.
        episodes: how many were timed, after the warm-up.
    """

    adapt_ms: float
    predict_ms: float
    adapt_iqr_ms: float
    predict_iqr_ms: float
    episodes: int


def measure(algorithm: Algorithm, source: EpisodeSource, store: ItemStore) -> Times:
    """Time an algorithm as it stands on the episodes of a source."""
    algorithm.eval()
    adapting, predicting = [], []
    with torch.no_grad(), _collector_off():
        for number in range(WARM_UP + EPISODES):
            drawn = source.draw([number])
            support = support_of(drawn, store, source.shape.ways)
            queries = queries_of(drawn, store)
            ctx = Context("test", EpisodeRandom(source.key, [number], store.device))
            state, adapt_s = _timed(partial(_adapt, algorithm, support, ctx), store.device)
            _, predict_s = _timed(partial(_predict, algorithm, state, queries, ctx), store.device)
            if number >= WARM_UP:
                adapting.append(1e3 * adapt_s)
                predicting.append(1e3 * predict_s)
    return Times(
        adapt_ms=statistics.median(adapting),
        predict_ms=statistics.median(predicting),
        adapt_iqr_ms=_iqr(adapting),
        predict_iqr_ms=_iqr(predicting),
        episodes=EPISODES,
    )


def _adapt(algorithm: Algorithm, support: Support, ctx: Context) -> object:
    if isinstance(algorithm, EmbeddingAlgorithm):
        support = support._replace(items=algorithm.embed_sets(support.items))
    return algorithm.adapt(support, ctx)


def _predict(algorithm: Algorithm, state: object, queries: Items, ctx: Context) -> object:
    if isinstance(algorithm, EmbeddingAlgorithm):
        queries = algorithm.embed_sets(queries)
    return algorithm.predict(state, queries, ctx)


def _timed(fn: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What `fn` returns and the seconds it took, the device idle before and after."""
    _synchronise(device)
    start = time.perf_counter()
    result = fn()
    _synchronise(device)
    return result, time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _iqr(values: list[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection inside the window."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
