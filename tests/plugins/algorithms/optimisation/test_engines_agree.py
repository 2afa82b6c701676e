"""Gradient-based algorithms give the same meta-gradient and predictions in every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metabench.api.recipe import Recipe
from metabench.engine import compiled
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.modes import using_engine
from metabench.plugins import load_registry
from metabench_plugins import ALGORITHMS

RECIPE = Recipe(steps=1, meta_batch=3, queries=3)


def variants() -> list[Any]:
    registry, found = load_registry(strict=True), []
    for lazy in ALGORITHMS:
        cls = registry.get("algorithm", lazy.name).load()
        # Fine-tuning is a `GradientAlgorithm` too, but takes no outer gradient through its steps.
        if issubclass(cls, GradientAlgorithm) and "inner_steps" in cls.hyperparameters.model_fields:
            for option in ("support", "support+1", "running", "batch"):
                hp = cls.hyperparameters(batch_norm=option, inner_steps=3, inner_steps_test=4)
                found.append(pytest.param(cls, hp, id=f"{lazy.name}-{option}"))
    return found


def outcome(lab: Any, kind: Any, hp: Any, engine: Any) -> tuple[list[Tensor], Tensor]:
    """What a training step leaves in gradients and buffers, and predictions after it."""
    lab = lab.double().with_protocol(shots=2)
    algorithm = lab.make(kind, hp, backbone=lab.SmoothConv, recipe=RECIPE)
    batch = lab.batch(3)
    with using_engine(engine):
        algorithm.train()
        algorithm.training_step(batch, lab.context("train", 3, total=1))
        algorithm.eval()
        with torch.no_grad():
            logits = lab.logits(algorithm, batch.support, batch.queries)
    left = [p.grad for p in algorithm.parameters() if p.grad is not None]
    assert any(value.abs().max() > 0 for value in left)
    return [*left, *(b for b in algorithm.buffers() if b.is_floating_point())], logits


def agree(found: Any, expected: Any, atol: float = 1e-10) -> None:
    for one, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=atol)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=atol)


@pytest.mark.parametrize("engine", ["vmap", "mixed"])
@pytest.mark.parametrize(("kind", "hp"), variants())
def test_an_engine_gives_what_the_loop_gives(lab, kind: Any, hp: Any, engine: str) -> None:
    # The bias before a batch norm has a gradient of zero. Reptile's Adam divides what rounding
    # leaves of it by its own size and 1e-8.
    atol = 1e-8 if kind.name == "reptile" else 1e-10
    agree(outcome(lab, kind, hp, engine), outcome(lab, kind, hp, "loop"), atol)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_what_is_compiled_gives_what_the_loop_gives(lab, monkeypatch, name: str) -> None:
    # The compiler's own machine code takes a minute (see the slow tests of the engine); here its
    # tracing and its derivatives run, with plain kernels.
    traced = torch.compile(compiled._gradient, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(compiled, "_compiled", lambda: traced)
    kind = load_registry(strict=True).get("algorithm", name).load()
    hp = kind.hyperparameters(inner_steps=2)
    agree(outcome(lab, kind, hp, "compile"), outcome(lab, kind, hp, "loop"))
