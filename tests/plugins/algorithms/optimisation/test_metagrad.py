"""MetaGrad against hypergradient descent in NumPy, against MAML, and by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metabench.api.phases import Batches, Episodic
from metabench.api.recipe import Recipe
from metabench.engine.inner import unroll
from metabench.engine.train import planned_phases
from metabench_plugins.algorithms.optimisation.adaptive_metagrad import (
    AdaptiveMetaGrad,
    AdaptiveMetaGradHyperparameters,
)
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.algorithms.optimisation.metagrad import (
    Descent,
    MetaGrad,
    MetaGradHyperparameters,
)
from metabench_plugins.algorithms.transfer.baseline import Baseline
from metabench_plugins.backbones.identity import Identity

Lab = Any
RULES = ["multiplicative", "additive"]
SIZES = {"a.weight": 2, "a.bias": 1, "b.weight": 3}
"""The tensors of a small problem; the layers are a and b."""
LAYERS = {"a": slice(0, 3), "b": slice(3, 6)}


def made(lab: Lab, backbone: Any = Identity, **given: Any) -> Any:
    return lab.double().make(MetaGrad, MetaGradHyperparameters(**given), backbone=backbone)


def quadratic(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(curvature, point) of x^T A x / 2 in six dimensions; eigenvalues up to 3."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    return turned @ np.diag([0.1, 0.3, 0.5, 1.0, 2.0, 3.0]) @ turned.T, rng.normal(size=6)


def by_numpy(a: np.ndarray, x: np.ndarray, hp: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Point and rates after so many steps, as the paper's SGD-HD has them, layer by layer."""
    rates, before = np.full(2, hp.inner_lr), None
    for _ in range(steps):
        g = a @ x
        x = x.copy()
        for i, part in enumerate(LAYERS.values()):
            if before is not None:
                u, v = g[part], before[part]
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                add = hp.rule == "additive"
                rates[i] += hp.hyper_lr * (u @ v if add else rates[i] * cosine)
                rates[i] = min(
                    max(rates[i], hp.inner_lr / hp.rate_range), hp.inner_lr * hp.rate_range
                )
            x[part] -= rates[i] * g[part]
        before = g
    return x, rates


def by_ours(algorithm: Any, a: np.ndarray, x: np.ndarray, steps: int) -> tuple[Any, Any]:
    start = torch.from_numpy(x).split(list(SIZES.values()))
    curvature = torch.from_numpy(a)

    def loss(params: Any, buffers: Any, batch: Any, t: int) -> Any:
        point = torch.cat(list(params.values()))
        return point @ curvature @ point / 2, buffers

    rates = torch.full((2,), algorithm.hp.inner_lr, dtype=torch.float64)
    phi, _, end = unroll(
        loss,
        dict(zip(SIZES, start, strict=True)),
        {},
        None,
        Descent(rates, {}),
        algorithm.inner_update,
        list(SIZES),
        steps,
        1,
    )
    return torch.cat(list(phi.values())).numpy(), end.rates.numpy()


@pytest.mark.parametrize("steps", [0, 1, 2, 12])
@pytest.mark.parametrize("rate_range", [1.2, 1e6])
@pytest.mark.parametrize(("rule", "beta"), [("multiplicative", 0.3), ("additive", 0.02)])
def test_the_inner_loop_is_hypergradient_descent(
    lab: Lab, rule: str, beta: float, rate_range: float, steps: int
) -> None:
    algorithm = made(lab, inner_lr=0.2, hyper_lr=beta, rule=rule, rate_range=rate_range)
    a, x = quadratic()
    expected, rates = by_numpy(a, x, algorithm.hp, steps)
    point, found = by_ours(algorithm, a, x, steps)
    np.testing.assert_allclose(point, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found, rates, rtol=1e-10)
    if steps == 12:
        assert np.all(np.abs(found / 0.2 - 1) > 0.01)  # they moved


def test_rates_move_against_the_loss_gradient_by_the_last_steps_rates(lab: Lab) -> None:
    algorithm = made(lab, hyper_lr=1.0, rule="additive", rate_range=1e6)
    a, x = quadratic(1)
    g, rates, h = a @ x, np.array([0.2, 0.3]), 1e-5

    def point(rates: np.ndarray) -> np.ndarray:
        return x - np.repeat(rates, 3) * g

    def loss(rates: np.ndarray) -> float:
        return float(point(rates) @ a @ point(rates) / 2)

    slopes = [(loss(rates + h * e) - loss(rates - h * e)) / (2 * h) for e in np.eye(2)]
    now, before = (
        dict(zip(SIZES, torch.from_numpy(v).split(list(SIZES.values())), strict=True))
        for v in (a @ point(rates), g)
    )
    found = algorithm.adapted_rates(torch.from_numpy(rates), now, before).numpy()
    np.testing.assert_allclose(found - rates, -np.array(slopes), rtol=1e-7)


def test_a_layer_without_a_gradient_keeps_its_rate_and_gives_finite_gradients(lab: Lab) -> None:
    algorithm = made(lab, rule="multiplicative")
    zero = {"a.weight": torch.zeros(4, requires_grad=True)}
    rates = algorithm.adapted_rates(torch.tensor([0.3]), zero, zero)
    rates.sum().backward()
    assert rates.tolist() == pytest.approx([0.3])
    assert torch.equal(zero["a.weight"].grad, torch.zeros(4))


@pytest.mark.parametrize("option", ["support", "support+1", "running", "batch"])
def test_without_hypergradients_it_is_maml(lab: Lab, option: str) -> None:
    lab = lab.with_protocol(ways=3, shots=2, queries=3).double()
    given = {"inner_lr": 0.3, "inner_steps": 3, "inner_steps_test": 5, "batch_norm": option}
    ours = made(lab, lab.SmoothConv, hyper_lr=0.0, **given)
    ours.rates.fill_(0.3)  # it was made in float32
    maml = lab.make(MAML, MAMLHyperparameters(**given), backbone=lab.SmoothConv)
    batch = lab.batch(2)
    losses = [a.training_step(batch, lab.context("train")) for a in (ours, maml)]
    torch.testing.assert_close(*losses)
    expected = dict(maml.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)
    assert torch.allclose(ours.rates, torch.full_like(ours.rates, 0.3))
    with torch.no_grad():
        one, other = (lab.logits(a, batch.support, batch.queries) for a in (ours, maml))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rule", RULES)
def test_the_meta_gradient_goes_through_the_changing_rates(lab: Lab, rule: str) -> None:
    """By finite differences; those of the rates held still, which MAML's would be, are others."""
    lab = lab.with_protocol(ways=3, shots=2, queries=3).double()
    given = {"inner_lr": 0.5, "inner_steps": 3, "carry": 0.0, "rate_range": 100.0}
    algorithm = made(lab, lab.SmoothConv, hyper_lr=0.5, rule=rule, **given)
    batch, ctx = lab.batch(2), lab.context("train")
    algorithm.training_step(batch, ctx)
    generator = torch.Generator().manual_seed(0)
    weight, h = algorithm.backbone.net[0].weight, 1e-4
    start, along = weight.detach().clone(), torch.randn(weight.shape, generator=generator).double()

    def loss(by: float) -> float:
        with torch.no_grad():
            weight.copy_(start + by * along)
        return float(algorithm.training_loss(batch, ctx).detach())

    slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    loss(0.0)
    assert float((weight.grad * along).sum()) == pytest.approx(slope, rel=1e-6)

    still = made(lab, lab.SmoothConv, hyper_lr=0.5, rule=rule, **given)
    adapted = still.adapted_rates
    still.adapted_rates = lambda *args: adapted(*args).detach()
    still.training_step(batch, ctx)
    held = float((still.backbone.net[0].weight.grad * along).sum())
    assert abs(held - slope) > 1e-4 * abs(slope)


def test_rates_are_handed_on_in_training_and_not_at_test(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm = made(lab, lab.SmoothConv, carry=0.25, hyper_lr=0.5, rule="multiplicative")
    batch, start = lab.batch(3), algorithm.rates.clone()
    assert start.shape == (5,)  # two convolutions, two batch norms, the head
    with torch.no_grad():
        ends = algorithm.adapt(batch.support, lab.context("train", 3))["rates"]
    assert torch.equal(algorithm.rates, start)
    assert ((ends - start).abs() > 1e-3).all(), "each rate is adapted in each task"
    algorithm.training_step(batch, lab.context("train", 3))
    torch.testing.assert_close(algorithm.rates, start + 0.25 * (ends.mean(0) - start))
    kept = algorithm.rates.clone()
    with torch.no_grad():
        first = lab.logits(algorithm, batch.support, batch.queries)
        again = lab.logits(algorithm, batch.support, batch.queries)
        algorithm.rates.copy_(start)
        other = lab.logits(algorithm, batch.support, batch.queries)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)  # a task begins with the kept ones
    assert not torch.equal(kept, start)


def test_adaptive_metagrad_meta_trains_what_baseline_trained(lab: Lab) -> None:
    hp = AdaptiveMetaGradHyperparameters(pretrain_ratio=2.5, pretrain_lr=3e-3)
    recipe = Recipe(steps=4, meta_batch=1, batch_size=32, queries=3, lr=1e-30)
    algorithm = lab.make(AdaptiveMetaGrad, hp, recipe=recipe)
    first, second = planned_phases(algorithm, recipe, seed=0)
    supervised = Recipe(steps=10, batch_size=32, lr=3e-3)
    assert isinstance(first, Batches)
    assert first.shared
    assert first.recipe.batch_identity == supervised.batch_identity
    assert isinstance(second, Episodic)
    assert second.recipe == recipe
    baseline = lab.make(Baseline, recipe=supervised)
    rates = algorithm.rates.clone()
    lab.train(algorithm, recipe)
    lab.train(baseline, supervised)
    weights = dict(baseline.backbone.named_parameters())
    for name, value in algorithm.backbone.named_parameters():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-12)
    assert not torch.equal(algorithm.rates, rates)  # it was meta-trained, if hardly


def test_adaptive_metagrad_over_pixels_has_nothing_to_pre_train(lab: Lab) -> None:
    algorithm = lab.make(AdaptiveMetaGrad, backbone=Identity)
    (only,) = algorithm.phases(Recipe(steps=3))
    assert isinstance(only, Episodic)
