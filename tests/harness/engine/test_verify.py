"""Verifying the inference mode: what looks at the other queries is caught, whatever it declares."""

import pytest
import torch
from torch import Tensor, nn

from metabench.api.context import Context
from metabench.api.items import Items, PyTree
from metabench.engine.norm import norm_mode
from metabench.engine.verify import depends_on_other_queries


def variant(world, change) -> type:
    """The nearest class mean, its query embeddings changed before they are compared."""

    class Changed(world.Nearest):
        def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
            return super().predict(state, queries._replace(data=change(queries.data, ctx)), ctx)

    return Changed


@pytest.mark.parametrize("kind", ["Nearest", "NearestRaw"])
def test_inductive_ones_pass(world, kind: str) -> None:
    algorithm = world.make(getattr(world, kind)).train()
    assert depends_on_other_queries(algorithm, world.source(), world.store(), 3) == ""
    assert algorithm.training


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda q, ctx: q - q.mean(1, keepdim=True), "one at a time"),
        (lambda q, ctx: q / q.shape[1], "one at a time"),
        (lambda q, ctx: q + 0.01 * torch.arange(q.shape[1]).view(1, -1, 1), "one at a time"),
        (lambda q, ctx: q + 0.01 * ctx.rng.normal(*q.shape[1:]), "in reverse order"),
    ],
    ids=["centred on the queries", "by their number", "by position", "noise by position"],
)
def test_what_looks_at_the_other_queries_is_caught(world, change, how: str) -> None:
    found = depends_on_other_queries(
        world.make(variant(world, change)), world.source(), world.store()
    )
    assert "changed the predictions" in found
    if how == "one at a time":
        assert how in found


def test_noise_of_the_episode_is_inductive(world) -> None:
    """One draw an episode, before anything hangs on the queries."""
    algorithm = world.make(variant(world, lambda q, ctx: q + ctx.rng.normal(1, 16)))
    assert depends_on_other_queries(algorithm, world.source(), world.store()) == ""


def test_batch_norm_on_the_queries_is_caught(world) -> None:
    algorithm = world.make(world.NearestRaw)
    with norm_mode(algorithm, "fresh"):
        assert depends_on_other_queries(algorithm, world.source(), world.store())


def test_float64_has_a_tolerance_of_its_own(world) -> None:
    """A thousandth of what float32 is granted is too much in float64."""

    def slightly(q: Tensor, ctx: Context) -> Tensor:
        return q + 1e-7 * q.mean(1, keepdim=True)

    class Wide(variant(world, slightly)):
        def embed(self, data: Tensor) -> Tensor:
            return super().embed(data.to(next(self.backbone.parameters()).dtype))

        def adapt(self, support, ctx):  # type: ignore[no-untyped-def]
            dtype = support.items.data.dtype
            member = nn.functional.one_hot(support.targets.values, support.ways).to(dtype)
            return {"means": member.mT @ support.items.data / member.sum(1).unsqueeze(-1)}

    source, store = world.source(), world.store()
    assert depends_on_other_queries(world.make(Wide), source, store) == ""
    assert depends_on_other_queries(world.make(Wide).double(), source, store) != ""


def test_what_is_no_number_fails(world) -> None:
    algorithm = world.make(variant(world, lambda q, ctx: q * torch.nan))
    assert depends_on_other_queries(algorithm, world.source(), world.store()) != ""
