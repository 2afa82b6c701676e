"""Every algorithm on the `meta` device: what it makes on the host, or reads from a tensor, fails.

So what would stall an accelerator, or break on one, is found without one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch, tree_map
from metabench.api.phases import Episodic
from metabench.api.recipe import Recipe
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.modes import using_engine
from metabench.plugins import load_registry
from metabench_plugins import ALGORITHMS

META = torch.device("meta")
NORMS = ("support", "support+1", "running", "batch")
STEPS = 2
"""The first and one that goes on from it: each further one would do what the second does."""


def variants() -> list[Any]:
    """Each algorithm as it comes, and those with the choice under each batch norm, or head."""
    registry, found = load_registry(strict=True), []
    for lazy in ALGORITHMS:
        cls = registry.get("algorithm", lazy.name).load()
        if "batch_norm" in cls.hyperparameters.model_fields:
            found += [
                pytest.param(cls, few_steps(cls, batch_norm=option), id=f"{lazy.name}-{option}")
                for option in NORMS
            ]
        else:
            found.append(pytest.param(cls, few_steps(cls), id=lazy.name))
        if "head" in cls.hyperparameters.model_fields:
            found += [
                pytest.param(cls, few_steps(cls, head=head), id=f"{lazy.name}-{head}")
                for head in ("mlp", "cnn", "rnn", "maml")
            ]
    return found


def few_steps(cls: Any, **settings: Any) -> Any:
    """Its hyper-parameters, with no more than `STEPS` steps of whatever goes in steps."""
    own = cls.hyperparameters(**settings)
    steps = {
        name: min(value, STEPS)
        for name, value in own
        if isinstance(value, int) and (name.startswith("inner_steps") or name.endswith("steps"))
    }
    return cls.hyperparameters(**settings, **steps)


def on_meta(tree: Any) -> Any:
    return tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, tree)


@pytest.fixture(params=["loop", "vmap", "mixed"])
def engine(request: pytest.FixtureRequest) -> Any:
    with using_engine(request.param):
        yield request.param


@pytest.mark.parametrize(("kind", "hp"), variants())
def test_a_training_step_adaptation_and_prediction(lab, engine: str, kind: Any, hp: Any) -> None:
    lab = lab.with_protocol(shots=2)
    recipe = Recipe(steps=1, meta_batch=2, queries=3)
    algorithm = lab.make(kind, hp, recipe=recipe, backbone=lab.SmoothConv).to(META)
    batch: EpisodeBatch = on_meta(lab.batch(2))
    if any(isinstance(phase, Episodic) for phase in algorithm.phases(recipe)):
        algorithm.train()
        loss = algorithm.training_step(batch, context("train"))
        assert loss.device == META
        algorithm.eval()
    support, queries, _, _ = batch
    with torch.no_grad():
        if isinstance(algorithm, EmbeddingAlgorithm):
            support = support._replace(items=algorithm.embed_sets(support.items))
            queries = algorithm.embed_sets(queries)
        ctx = context("test")
        logits = algorithm.predict(algorithm.adapt(support, ctx), queries, ctx)
    assert logits.shape == (2, 5 * lab.protocol.queries, 5)
    assert logits.device == META


def test_the_check_can_fail(lab) -> None:
    """A number read from the device inside the step, and a tensor made on the host beside it."""
    cls = load_registry(strict=True).get("algorithm", "protonet").load()

    class Reads(cls):
        def adapt(self, support: Any, ctx: Context) -> Any:
            scale = support.items.data.mean().item()
            return super().adapt(support._replace(ways=support.ways + int(scale * 0)), ctx)

    class Host(cls):
        def predict(self, state: Any, queries: Any, ctx: Context) -> Tensor:
            logits = super().predict(state, queries, ctx)
            return logits + torch.ones(logits.shape)

    for broken in (Reads, Host):
        algorithm = lab.make(broken).to(META)
        with pytest.raises((RuntimeError, NotImplementedError)):
            algorithm.training_step(on_meta(lab.batch(2)), context("train"))


def context(stage: Any) -> Context:
    return Context(stage, EpisodeRandom(b"k" * 16, [0, 1], META), step=0, total=1)
