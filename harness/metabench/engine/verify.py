"""Verifies the declared inference mode: whether predictions depend on what else is asked."""

from __future__ import annotations

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, Support, tree_map
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.gather import ItemStore, queries_of, support_of
from metabench.engine.numerics import seed_all
from metabench.episodes.source import EpisodeSource

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Of the logits' range: PyTorch is not bit-equal between batch sizes."""

SINGLE_QUERIES = 8
"""About how many queries of an episode are asked by themselves, spread over it."""


def depends_on_other_queries(
    algorithm: Algorithm, source: EpisodeSource, store: ItemStore, episodes: int = 2
) -> str:
    """Ask for the same queries again: some one at a time, all in reverse order, episode by episode.

    Returns:
        empty if each query's logits stay within the tolerance, else what differed and by how much:
        the algorithm is transductive, whatever it declares.
    """
    was_training = algorithm.training
    algorithm.eval()
    drawn = source.draw(range(episodes))
    support, queries = support_of(drawn, store, source.shape.ways), queries_of(drawn, store)

    def logits(asked: Items, only: slice = slice(None)) -> Tensor:
        seed_all("verify", source.key.hex())
        numbers = list(range(episodes))[only]
        ctx = Context("test", EpisodeRandom(source.key, numbers, store.device))
        items, targets = tree_map(lambda x: x[only], (support.items, support.targets))
        known = Support(items, targets, support.ways)
        asked = tree_map(lambda x: x[only], asked)
        if isinstance(algorithm, EmbeddingAlgorithm):
            known = known._replace(items=algorithm.embed_sets(known.items))
            asked = algorithm.embed_sets(asked)
        return algorithm.predict(algorithm.adapt(known, ctx), asked, ctx)

    def part(index: slice | Tensor) -> Items:
        return Items(tree_map(lambda x: x[:, index], queries.data))

    try:
        with torch.no_grad():
            together = logits(queries)
            count = together.shape[1]
            alone = range(0, count, max(1, count // SINGLE_QUERIES))
            singly = torch.cat([logits(part(slice(q, q + 1))) for q in alone], dim=1)
            turned = logits(part(torch.arange(count - 1, -1, -1, device=store.device))).flip(1)
            apart = torch.cat([logits(queries, slice(e, e + 1)) for e in range(episodes)])
    finally:
        algorithm.train(was_training)
    scale = float(together.max() - together.min()) or 1.0
    pairs = {
        "one at a time": (together[:, list(alone)], singly),
        "in reverse order": (together, turned),
        "without the other episodes": (together, apart),
    }
    for how, (expected, other) in pairs.items():
        difference = float((expected - other).abs().max()) / scale
        if not difference <= TOLERANCE.get(together.dtype, 1e-4):
            return f"queries asked {how} changed the predictions by {difference:.2g} of their range"
    return ""
