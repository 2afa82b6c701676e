"""Verifies the declared inference mode: whether predictions depend on what else is asked."""

from __future__ import annotations

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, Support, tree_map
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.evaluate import embedded
from metabench.engine.gather import ItemStore, queries_of, support_of
from metabench.engine.numerics import seed_all
from metabench.engine.precision import Precision, at_least_float32
from metabench.episodes.source import EpisodeSource

TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 5e-3, "bf16": 0.05}
"""Of the logits' range: PyTorch is not bit-equal between batch sizes.

Another order of a sum changes what is rounded to 24, 11 or 8 bits. In bf16 the `baseline`, whose
head takes a hundred steps, moves by up to .026 on Omniglot; tf32 rounds 8 times as finely, and its
value is unmeasured. Batch norm on the queries, or centring on them, moves logits by tenths.
"""
FLOAT64_TOLERANCE = 1e-9
"""Where an algorithm computes in float64, as tests do."""

SINGLE_QUERIES = 8
"""About how many queries of an episode are asked by themselves, spread over it."""


def depends_on_other_queries(
    algorithm: Algorithm,
    source: EpisodeSource,
    store: ItemStore,
    episodes: int = 2,
    *,
    precision: Precision = "float32",
) -> str:
    """Ask for the same queries again: some one at a time, all in reverse order, episode by episode.

    Args:
        precision: in which it is computed here; rounding grants a tolerance.

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
            known = known._replace(items=embedded(algorithm, known.items))
            asked = embedded(algorithm, asked)
        return at_least_float32(algorithm.predict(algorithm.adapt(known, ctx), asked, ctx))

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
    exact = together.dtype == torch.float64
    tolerance = FLOAT64_TOLERANCE if exact else TOLERANCE[precision]
    scale = float(together.max() - together.min()) or 1.0
    pairs = {
        "one at a time": (together[:, list(alone)], singly),
        "in reverse order": (together, turned),
        "without the other episodes": (together, apart),
    }
    for how, (expected, other) in pairs.items():
        difference = float((expected - other).abs().max()) / scale
        if not difference <= tolerance:
            return f"queries asked {how} changed the predictions by {difference:.2g} of their range"
    return ""
