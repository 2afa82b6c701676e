"""A captured meta-step gives the usual one's gradients, or is not taken."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch, Items, Support, Targets
from metabench.engine import graphs
from metabench.engine.gradient import GradientAlgorithm, GradientHyperparameters
from metabench.engine.graphs import (
    CHECKS,
    MOST_SHAPES,
    WARM_UP,
    CapturedStep,
    Outcome,
    WatchedContext,
    shape_of,
    training_step_of,
)
from metabench.engine.modes import using_engine


class Learner(GradientAlgorithm):
    """Second-order MAML."""

    name = "learner"
    reference = summary = ""


def batch(seed: int, device: str = "cpu", *, shots: int = 2, ways: int = 4) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)

    def items(each: int) -> Tensor:
        return torch.rand(2, ways * each, 1, 6, 6, generator=generator).to(device)

    def targets(each: int) -> Tensor:
        return torch.arange(ways, device=device).repeat(each).expand(2, -1).contiguous()

    support = Support(Items(items(shots)), Targets(targets(shots)), ways)
    classes = torch.arange(ways, device=device).expand(2, -1)
    return EpisodeBatch(support, Items(items(3)), Targets(targets(3)), classes)


def context(number: int, device: str = "cpu") -> Context:
    return Context(
        "train", EpisodeRandom(b"key", [number, number + 1], device), number, 100, "meta"
    )


def test_a_shape_is_what_a_graph_is_recorded_for() -> None:
    assert shape_of(batch(0)) == shape_of(batch(1))
    others = [batch(0, shots=1), batch(0, ways=3)]
    turned = batch(0)
    data = turned.queries.data.transpose(-1, -2)
    others.append(turned._replace(queries=Items(data)))
    others.append(turned._replace(queries=Items(turned.queries.data.double())))
    assert len({shape_of(one) for one in (turned, *others)}) == 5


def test_what_a_graph_would_freeze_is_noted() -> None:
    ctx = context(3)
    watched = WatchedContext(ctx)
    assert watched.training
    assert (watched.stage, watched.phase) == ("train", "meta")
    assert watched.noted == set()
    assert (watched.step, watched.total) == (3, 100)
    drawn = watched.rng.normal(4)
    assert watched.noted == {"step", "total", "rng"}
    assert torch.equal(ctx.rng.normal(4), drawn)  # it was not drawn for those who come after


def test_results_are_compared_bit_for_bit() -> None:
    one = Outcome(torch.ones(()), [torch.ones(2), None], [torch.zeros(3)])
    kept = one.copied()
    assert one.same(kept)
    one.buffers[0][1] = 1e-30
    assert not one.same(kept)
    assert not kept.same(kept._replace(grads=[None, torch.ones(2)]))


def test_nothing_is_captured_but_on_cuda(world) -> None:
    algorithm = world.make()
    assert training_step_of(algorithm, torch.device("cpu")) == algorithm.training_step


@pytest.fixture
def learner(world):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return lambda kind=Learner: made(world, kind)


def made(world, kind: type[GradientAlgorithm]) -> GradientAlgorithm:
    from dataclasses import replace

    from metabench.api.recipe import Recipe

    trial = world.trial(Recipe(ways=4), kind)
    blueprint = replace(trial.blueprint, algorithm_hp=GradientHyperparameters(inner_steps=3))
    algorithm = replace(trial, blueprint=blueprint, device=torch.device("cuda")).build()
    for layer in algorithm.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return algorithm.train()


def gradients(algorithm: GradientAlgorithm) -> list[Tensor]:
    return [p.grad.clone() for p in algorithm.parameters() if p.grad is not None]


@pytest.mark.gpu
def test_replayed_gradients_are_those_of_the_usual_step(learner) -> None:
    """Over several batches, under weights that an optimiser moves in between."""
    algorithm = learner()
    step = CapturedStep(algorithm, torch.device("cuda"))
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=1e-2)
    with using_engine("vmap"):
        for number in range(WARM_UP + CHECKS + 5):
            one = batch(number, "cuda")
            optimizer.zero_grad()
            expected_loss = algorithm.training_step(one, context(number, "cuda"))
            expected = gradients(algorithm)
            optimizer.zero_grad()
            loss = step(one, context(number, "cuda"))
            assert step.refused == ""
            torch.testing.assert_close(loss, expected_loss)
            torch.testing.assert_close(gradients(algorithm), expected)
            optimizer.step()


@pytest.mark.gpu
def test_another_shape_has_a_graph_of_its_own(learner) -> None:
    algorithm = learner()
    step = CapturedStep(algorithm, torch.device("cuda"))
    with using_engine("vmap"):
        for number in range(2 * (WARM_UP + CHECKS + 2)):
            algorithm.zero_grad()
            step(batch(number, "cuda", shots=1 + number % 2), context(number, "cuda"))
    assert (len(step.seen), step.refused) == (2, "")


class Drawing(Learner):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * (1 + ctx.rng.uniform(1).mean())


class Waiting(Learner):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss = super().training_loss(batch, ctx)
        return loss if float(loss.detach()) < 1e6 else loss * 0


class Annealed(Learner):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * (1 - ctx.step / ctx.total)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "why"),
    [(Drawing, "reads ctx.rng"), (Waiting, "waits for the device"), (Annealed, "reads ctx.step")],
)
def test_what_cannot_be_captured_is_run_as_usual(learner, kind, why: str, caplog) -> None:
    algorithm = learner(kind)
    step = CapturedStep(algorithm, torch.device("cuda"))
    with using_engine("vmap"), caplog.at_level(logging.WARNING):
        for number in range(3):
            one = batch(number, "cuda")
            algorithm.zero_grad()
            algorithm.training_step(one, context(number, "cuda"))
            expected = gradients(algorithm)
            algorithm.zero_grad()
            step(one, context(number, "cuda"))
            torch.testing.assert_close(gradients(algorithm), expected)
    assert why in step.refused
    assert sum("not captured" in line for line in caplog.messages) == 1


@pytest.mark.gpu
def test_more_shapes_than_memory_is_given_to_are_not_captured(learner) -> None:
    algorithm = learner()
    step = CapturedStep(algorithm, torch.device("cuda"))
    with using_engine("vmap"):
        for shots in range(1, MOST_SHAPES + 2):
            step(batch(0, "cuda", shots=shots), context(0, "cuda"))
    assert "shapes" in step.refused


@pytest.mark.gpu
def test_other_bits_are_not_taken(learner, monkeypatch) -> None:
    monkeypatch.setattr(graphs.Outcome, "same", lambda self, other: False)
    algorithm = learner()
    step = CapturedStep(algorithm, torch.device("cuda"))
    with using_engine("vmap"):
        for number in range(WARM_UP + 1):
            algorithm.zero_grad()
            step(batch(number, "cuda"), context(number, "cuda"))
    assert "other bits" in step.refused
