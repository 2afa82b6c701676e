"""MAML++ against MAML, against plain autograd written out, and by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metabench import GradientHyperparameters
from metabench_plugins.algorithms.optimisation.fomaml import FOMAML
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.algorithms.optimisation.maml_plus_plus import (
    MAMLPlusPlus,
    MAMLPlusPlusHyperparameters,
)

Lab = Any
Tensors = dict[str, Tensor]
Moments = list[tuple[Tensor, Tensor]]
OPTIONS = ["support", "support+1", "running", "batch"]
OFF = {"learned_rates": False, "per_step_norm": False, "multi_step": 0.0, "first_order": 0.0}
NORMS = ("backbone.net.1", "backbone.net.4")
MOMENTUM = 0.1  # of the running moments


def made(lab: Lab, **given: Any) -> Any:
    """In float64 over the smooth network, all parameters moved from where they start."""
    hp = MAMLPlusPlusHyperparameters(**{"inner_lr": 0.3, "inner_steps": 3, **given})
    algorithm = lab.make(MAMLPlusPlus, hp, backbone=lab.SmoothConv)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in algorithm.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return algorithm


def small(lab: Lab) -> Lab:
    return lab.with_protocol(ways=3, shots=2, queries=3).double()


def step(lab: Lab, algorithm: Any, batch: Any, at: int = 0, total: int = 100) -> Any:
    """The loss that a meta-step returns, and the gradients that it leaves."""
    algorithm.zero_grad()
    loss = algorithm.training_step(batch, lab.context("train", step=at, total=total))
    return loss, {name: p.grad for name, p in algorithm.named_parameters()}


# The inner loop and the loss, written out.


def network(
    weights: Tensors, norms: list[Tensors], x: Tensor, stored: Moments | None = None
) -> tuple[Tensor, Moments]:
    """Logits, and each batch norm's mean and variance of what it was given."""
    own: Moments = []
    for layer, conv in enumerate(("backbone.net.0", "backbone.net.3")):
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=3)
        own.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
        mean, variance = (own if stored is None else stored)[layer]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        norm = norms[layer]
        x = torch.tanh(x * norm["weight"][:, None, None] + norm["bias"][:, None, None])
    return x.flatten(1) @ weights["head.weight"].T + weights["head.bias"], own


def norms_at(algorithm: Any, t: int) -> list[Tensors]:
    tensors = {**dict(algorithm.named_parameters()), **dict(algorithm.named_buffers())}
    return [
        {
            key: tensors[f"{norm}.steps.{t}.{key}"]
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        for norm in NORMS
    ]


def stored_at(algorithm: Any, t: int) -> Moments:
    return [(n["running_mean"].clone(), n["running_var"].clone()) for n in norms_at(algorithm, t)]


def descents(
    algorithm: Any, x: Tensor, y: Tensor, order: int = 2, stored: bool = False
) -> list[tuple[Tensors, Moments]]:
    """After each step: the weights, and the moments of the support set in it."""
    own = dict(algorithm.named_parameters())
    phi = {n: p for n, p in own.items() if ".steps." not in n and n != "rates"}
    found = []
    for t in range(algorithm.hp.inner_steps):
        given = stored_at(algorithm, t) if stored else None
        logits, moments = network(phi, norms_at(algorithm, t), x, given)
        grads = torch.autograd.grad(
            F.cross_entropy(logits, y), list(phi.values()), create_graph=True
        )
        grads = tuple(g.detach() for g in grads) if order == 1 else grads
        phi = {
            name: value - algorithm.rates[j, t] * g
            for j, ((name, value), g) in enumerate(zip(phi.items(), grads, strict=True))
        }
        found.append((phi, moments))
    return found


def written_out(algorithm: Any, batch: Any, weights: list[float], order: int) -> Any:
    """Loss and gradients with `batch_norm = "batch"`, weights of the losses after 1 to T steps."""
    losses = []
    for task in range(len(batch.classes)):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        asked, targets = batch.queries.data[task], batch.query_targets.values[task]
        for t, (phi, _) in enumerate(descents(algorithm, x, y, order)):
            logits = network(phi, norms_at(algorithm, t), asked)[0]
            losses.append(weights[t] * F.cross_entropy(logits, targets))
    loss = torch.stack(losses).sum() / len(batch.classes)
    own = dict(algorithm.named_parameters())
    grads = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    return loss.detach(), dict(zip(own, grads, strict=True))


@pytest.mark.parametrize(
    ("at", "weights", "order"),
    [
        (0, [1 / 3, 1 / 3, 1 / 3], 1),
        (19, [1 / 3 * 21 / 40, 1 / 3 * 21 / 40, 1 - 2 / 3 * 21 / 40], 1),
        (20, [1 / 6, 1 / 6, 2 / 3], 2),
        (40, [0, 0, 1], 2),
        (99, [0, 0, 1], 2),
    ],
)
def test_loss_and_meta_gradient_are_those_of_the_equations_all_through_training(
    lab: Lab, at: int, weights: list[float], order: int
) -> None:
    lab = small(lab)
    algorithm, batch = made(lab, multi_step=0.4, first_order=0.2), lab.batch(2)
    expected_loss, expected = written_out(algorithm, batch, weights, order)
    loss, found = step(lab, algorithm, batch, at)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    assert (found["rates"].abs().amax(0) > 1e-6).all()  # of each step
    for name, value in expected.items():
        if value is None:
            value = torch.zeros_like(found[name])
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_gradient_of_the_multi_step_loss_is_its_finite_difference(
    lab: Lab, option: str
) -> None:
    lab = small(lab)
    algorithm = made(lab, batch_norm=option, multi_step=0.5, first_order=0.0, inner_steps=2)
    batch, ctx = lab.batch(2), lab.context("train", step=10, total=100)
    assert algorithm.loss_weights(ctx) == pytest.approx({1: 0.4, 2: 0.6})
    _, found = step(lab, algorithm, batch, at=10)
    generator, h = torch.Generator().manual_seed(1), 1e-4
    kinds = {"backbone.net.0.weight", "head.weight", "rates"}
    kinds |= {f"{norm}.steps.{t}.{key}" for norm in NORMS for t in (0, 1) for key in ("bias",)}
    for name, parameter in algorithm.named_parameters():
        if name not in kinds:
            continue
        start = parameter.detach().clone()
        along = torch.randn(start.shape, generator=generator, dtype=torch.float64)

        def loss(by: float, p: Tensor = parameter, s: Tensor = start, d: Tensor = along) -> float:
            with torch.no_grad():
                p.copy_(s + by * d)
            return float(algorithm.training_loss(batch, ctx).detach())

        slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        with torch.no_grad():
            parameter.copy_(start)
        assert abs(slope) > 1e-5, name
        assert float((found[name] * along).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("kind", "hp", "first_order"),
    [(MAML, MAMLHyperparameters, 0.0), (FOMAML, GradientHyperparameters, 1.0)],
)
def test_with_everything_off_it_is_maml_and_fomaml(
    lab: Lab, option: str, kind: Any, hp: Any, first_order: float
) -> None:
    lab = small(lab)
    given = {"inner_lr": 0.3, "inner_steps": 3, "inner_steps_test": 5, "batch_norm": option}
    off = MAMLPlusPlusHyperparameters(**{**given, **OFF, "first_order": first_order})
    algorithm = lab.make(MAMLPlusPlus, off, backbone=lab.SmoothConv)
    plain = lab.make(kind, hp(**given), backbone=lab.SmoothConv)
    batch = lab.batch(2)
    (loss, found), (expected_loss, expected) = (step(lab, a, batch) for a in (algorithm, plain))
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        one, other = (lab.logits(a, batch.support, batch.queries) for a in (algorithm, plain))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.floats(0, 1), st.integers(1, 500), st.floats(0, 1))
def test_weights_sum_to_one_and_move_to_the_last_step(
    lab: Lab, steps: int, part: float, total: int, when: float
) -> None:
    hp = MAMLPlusPlusHyperparameters(inner_steps=steps, multi_step=part)
    algorithm, last = lab.make(MAMLPlusPlus, hp, backbone=lab.SmoothConv), 0.0
    for at in sorted({0, int(when * (total - 1)), total - 1}):
        weights = algorithm.loss_weights(lab.context("train", step=at, total=total))
        assert sum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) > 0
        assert list(weights)[-1] == steps
        assert len({weights[t] for t in weights if t < steps}) <= 1
        assert weights[steps] >= last  # it never falls
        last = weights[steps]
        if at == 0 and part > 0:
            assert weights == pytest.approx(dict.fromkeys(range(1, steps + 1), 1 / steps))
        if at >= part * total:
            assert weights == {steps: 1}


def test_the_order_goes_up_where_the_first_part_of_training_ends(lab: Lab) -> None:
    hp = MAMLPlusPlusHyperparameters(first_order=0.3)
    algorithm = lab.make(MAMLPlusPlus, hp, backbone=lab.SmoothConv)
    orders = [algorithm.order_at(lab.context("train", step=at, total=10)) for at in range(10)]
    assert orders == [1] * 3 + [2] * 7
    assert algorithm.order_at(lab.context("test")) == 1


def test_running_moments_are_each_steps_own_and_serve_at_test(lab: Lab) -> None:
    lab = small(lab)
    algorithm = made(lab, batch_norm="running", multi_step=0.0)
    batch = lab.batch(1)
    x, y = batch.support.items.data[0], batch.support.targets.values[0]
    last = algorithm.hp.inner_steps - 1
    before = [stored_at(algorithm, t) for t in range(last + 1)]
    inner = descents(algorithm, x, y)
    seen = [moments for _, moments in inner]
    queries = network(inner[-1][0], norms_at(algorithm, last), batch.queries.data[0])[1]
    step(lab, algorithm, batch)

    def moved(old: Tensor, new: Tensor) -> Tensor:
        return old + MOMENTUM * (new - old)

    for t in range(last + 1):
        for layer, (mean, variance) in enumerate(stored_at(algorithm, t)):
            count = len(x) * (81 if layer == 0 else 9)  # values a channel
            wanted = (
                moved(before[t][layer][0], seen[t][layer][0]),
                moved(before[t][layer][1], seen[t][layer][1] * count / (count - 1)),
            )
            if t == last:
                count = count // len(x) * batch.queries.data.shape[1]
                wanted = (
                    moved(wanted[0], queries[layer][0]),
                    moved(wanted[1], queries[layer][1] * count / (count - 1)),
                )
            torch.testing.assert_close((mean, variance), tuple(w.detach() for w in wanted))

    phi = descents(algorithm, x, y, stored=True)[-1][0]
    expected = network(
        phi, norms_at(algorithm, last), batch.queries.data[0], stored_at(algorithm, last)
    )[0]
    with torch.no_grad():
        logits = lab.logits(algorithm, batch.support, batch.queries)[0]
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_transductive_as_published_and_inductive_otherwise(lab: Lab, option: str) -> None:
    algorithm = made(lab.double(), batch_norm=option, inner_steps_test=5)
    declared = MAMLPlusPlus.inference_mode(algorithm.hp)
    assert declared == ("transductive" if option == "batch" else "inductive")
    assert bool(lab.double().dependence(algorithm)) == (declared == "transductive")
    assert MAMLPlusPlus.inference_mode(MAMLPlusPlusHyperparameters()) == MAMLPlusPlus.inference


def test_steps_beyond_those_of_training_are_like_the_last(lab: Lab) -> None:
    """Against one that was trained with as many, its last rates and norms the others' last."""
    lab = small(lab)
    few, many = made(lab, inner_steps=2, inner_steps_test=4), made(lab, inner_steps=4)
    theirs, ours = dict(many.named_parameters()), dict(few.named_parameters())
    with torch.no_grad():
        for name, value in theirs.items():
            if name == "rates":
                value.copy_(ours[name][:, [0, 1, 1, 1]])
            elif ".steps." in name:
                norm, _, rest = name.partition(".steps.")
                value.copy_(ours[f"{norm}.steps.{min(int(rest[0]), 1)}{rest[1:]}"])
            else:
                value.copy_(ours[name])
        batch = lab.batch(2)
        one, other = (lab.logits(a, batch.support, batch.queries) for a in (few, many))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
