"""Precision by name: what it does, where it holds, and that it is a part of what a cell is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metabench.api.items import Items, PyTree
from metabench.api.recipe import Recipe
from metabench.engine.numerics import numerics
from metabench.engine.precision import (
    PRECISIONS,
    at_least_float32,
    computing_in,
    resolve_precision,
)
from metabench.engine.trial import Attempt
from metabench.engine.verify import depends_on_other_queries
from metabench.errors import UnknownNameError, UsageError


def test_the_precision_of_a_name() -> None:
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("tf32", "cuda") == "tf32"
    with pytest.raises(UsageError, match="tf32 is CUDA's own"):
        resolve_precision("tf32", "cpu")
    with pytest.raises(UnknownNameError, match="bf61"):
        resolve_precision("bf61", "cpu")


def test_it_is_a_part_of_the_identity_and_the_default_is_what_it_was() -> None:
    assert numerics("cpu")["dtype"] == numerics("cpu", "loop", "float32")["dtype"] == "float32"
    assert len({str(numerics("cuda", "vmap", name)) for name in PRECISIONS}) == 3


def test_bf16_computes_products_in_bfloat16_and_keeps_nothing_of_it() -> None:
    x, weight = torch.rand(4, 4), torch.rand(4, 4, requires_grad=True)
    with computing_in("bf16", "cpu"):
        assert (x @ weight).dtype == torch.bfloat16
        first = float((x @ weight).detach().sum())
        with torch.no_grad():
            weight.add_(1.0)  # as an optimiser does
        assert float((x @ weight).detach().sum()) > first + 1
    assert (x @ weight).dtype == torch.float32
    assert at_least_float32(x.bfloat16()).dtype == torch.float32
    assert at_least_float32(x.double()).dtype == torch.float64


def test_tf32_is_set_for_a_while() -> None:
    def facts() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = facts()
    with computing_in("tf32", "cuda"):
        assert facts() == ("high", True)
    assert facts() == before
    with computing_in("float32", "cuda"):
        assert facts() == before


@pytest.mark.parametrize("kind", ["Nearest", "NearestRaw"])
def test_a_trial_in_bf16_is_about_as_good(world, kind: str) -> None:
    recipe = Recipe(steps=40, validate_every=20, validation_episodes=20, lr=1e-2)
    scores, weights = [], []
    for precision in ("float32", "bf16"):
        trial = replace(world.trial(recipe, getattr(world, kind)), precision=precision)
        algorithm, _ = trial.train(lambda bank, refit: nullcontext(Attempt()))
        tested = trial.test(algorithm)
        assert tested.inference == "inductive"
        assert {p.dtype for p in algorithm.parameters()} == {torch.float32}
        scores.append(tested.outcome.score("accuracy"))
        weights.append(algorithm.backbone.net[1].weight)
    assert not torch.equal(*weights)
    assert abs(scores[0] - scores[1]) < 0.05
    assert min(scores) > 0.4


def test_what_looks_at_the_other_queries_is_caught_in_bf16_too(world) -> None:
    class Centred(world.Nearest):
        def predict(self, state: PyTree, queries: Items, ctx) -> Tensor:  # type: ignore[no-untyped-def]
            data = queries.data - queries.data.mean(1, keepdim=True)
            return super().predict(state, queries._replace(data=data), ctx)

    source, store = world.source(), world.store()
    with computing_in("bf16", "cpu"):
        fine = depends_on_other_queries(world.make(), source, store, precision="bf16")
        found = depends_on_other_queries(world.make(Centred), source, store, precision="bf16")
    assert fine == ""
    assert "one at a time" in found
