"""CAVIA against a network and an inner loop written out, a layer modulated as in the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.engine.modes import using_engine
from metabench.errors import UsageError
from metabench_plugins.algorithms.optimisation.cavia import CAVIA, CAVIAHyperparameters
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.identity import Identity

Lab = Any
OPTIONS = ["support", "support+1", "running", "batch"]


def modulated(lab: Lab, **settings: Any) -> Any:
    """CAVIA whose gammas and deltas are of any sign, over the smooth network of two layers."""
    hp = CAVIAHyperparameters(context_size=5, batch_norm="batch", **settings)
    algorithm = lab.make(CAVIA, hp, backbone=lab.SmoothConv)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (algorithm.film.bias, *algorithm.backbone.net[1].parameters()):
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return algorithm


def network(theta: dict[str, Any], context: Tensor, x: Tensor, layer: int) -> Tensor:
    """Logits: two layers, one of them modulated between its batch norm and its activation."""
    gamma, delta = (theta["film.weight"] @ context + theta["film.bias"]).view(2, -1, 1, 1)
    for number, (conv, norm) in enumerate((("0", "1"), ("3", "4"))):
        p = {k.removeprefix("backbone.net."): v for k, v in theta.items()}
        x = F.conv2d(x, p[f"{conv}.weight"], p[f"{conv}.bias"], stride=3)
        weight, bias = p[f"{norm}.weight"], p[f"{norm}.bias"]
        x = F.batch_norm(x, None, None, weight, bias, training=True)
        x = torch.tanh(gamma * x + delta if number == layer else x)
    return x.flatten(1) @ theta["head.weight"].T + theta["head.bias"]


@pytest.mark.parametrize("layer", [0, 1, -2, -1])
def test_logits_and_meta_gradient_are_those_of_an_independent_implementation(
    lab: Lab, layer: int
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    algorithm = modulated(lab, inner_lr=0.7, inner_steps=3, layer=layer)
    batch, theta = lab.batch(2), dict(algorithm.named_parameters())
    loss = algorithm.training_step(batch, lab.context("train"))
    with torch.no_grad():
        found = lab.logits(algorithm, batch.support, batch.queries, "train")
    losses = []
    for task in range(2):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        context = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            inner = F.cross_entropy(network(theta, context, x, layer % 2), y)
            context = context - 0.7 * torch.autograd.grad(inner, context, create_graph=True)[0]
        assert context.abs().max() > 1e-3
        logits = network(theta, context, batch.queries.data[task], layer % 2)
        torch.testing.assert_close(found[task], logits.detach())
        losses.append(F.cross_entropy(logits, batch.query_targets.values[task]))
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach())
    trained = {name: p for name, p in theta.items() if p.requires_grad}
    assert theta.keys() - trained.keys() == {"context"}
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(trained.values()))
    for parameter, grad in zip(trained.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    assert float(algorithm.context.abs().max()) == 0


def pooled_network(
    theta: dict[str, Any], context: Tensor, x: Tensor, *, pools_first: bool
) -> Tensor:
    """Logits of conv4 with max-pooling, its third block modulated, before the pooling or after."""
    gamma, delta = (theta["film.weight"] @ context + theta["film.bias"]).view(2, -1, 1, 1)
    for block in range(4):
        p = f"backbone.blocks.{block}"
        x = F.conv2d(x, theta[f"{p}.conv.weight"], theta[f"{p}.conv.bias"], padding=1)
        scale, shift = theta[f"{p}.norm.weight"], theta[f"{p}.norm.bias"]
        x = F.batch_norm(x, None, None, scale, shift, training=True)
        if block == 2:
            x = gamma * F.max_pool2d(x, 2) + delta if pools_first else gamma * x + delta
        x = F.relu(x if block == 2 and pools_first else F.max_pool2d(x, 2))
    return x.flatten(1) @ theta["head.weight"].T + theta["head.bias"]


@pytest.mark.parametrize("engine", ["loop", "mixed", "vmap"])
@pytest.mark.parametrize("sign", [1, -1], ids=["gamma above zero", "some gamma below"])
def test_where_a_backbone_max_pools_it_modulates_before(lab: Lab, sign: int, engine: Any) -> None:
    """The authors' code does so behind: the same while gamma is positive, and only then.

    The engine pools before it normalises where that is the same, which a negative gamma forbids.
    """
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = CAVIAHyperparameters(context_size=5, batch_norm="batch", inner_lr=0.5, inner_steps=2)
    backbone = Conv4Hyperparameters(width=6)
    algorithm = lab.make(CAVIA, hp, backbone=Conv4, backbone_hp=backbone)
    with torch.no_grad():
        algorithm.film.weight *= 0.1
        algorithm.film.bias[1:6:2] *= sign
    batch, theta = lab.batch(2), dict(algorithm.named_parameters())
    with using_engine(engine):
        loss = algorithm.training_step(batch, lab.context("train"))
    losses, answers = [], []
    for task in range(2):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        context = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            inner = F.cross_entropy(pooled_network(theta, context, x, pools_first=False), y)
            context = context - 0.5 * torch.autograd.grad(inner, context, create_graph=True)[0]
        ours, theirs = (
            pooled_network(theta, context, batch.queries.data[task], pools_first=first)
            for first in (False, True)
        )
        losses.append(F.cross_entropy(ours, batch.query_targets.values[task]))
        answers.append((ours.detach(), theirs.detach()))
    gamma = theta["film.weight"][:6] @ context + theta["film.bias"][:6]
    assert bool((gamma > 0).all()) == (sign > 0)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) == (sign > 0) for a, b in answers)
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach())
    trained = {name: p for name, p in theta.items() if p.requires_grad}
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(trained.values()))
    for (name, parameter), grad in zip(trained.items(), expected, strict=True):
        torch.testing.assert_close(
            parameter.grad, grad, rtol=1e-7, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("option", OPTIONS)
def test_a_new_networks_context_of_zero_leaves_the_plain_network(lab: Lab, option: str) -> None:
    lab = lab.with_protocol(shots=2).double()
    none = {"inner_steps": 0, "batch_norm": option}
    cavia, maml = (
        lab.make(CAVIA, CAVIAHyperparameters(**none)),
        lab.make(MAML, MAMLHyperparameters(**none)),
    )
    cavia.head.load_state_dict(maml.head.state_dict())
    batch = lab.batch(2)
    with torch.no_grad():
        found, expected = (lab.logits(a, batch.support, batch.queries) for a in (cavia, maml))
    torch.testing.assert_close(found, expected)


def test_the_state_of_a_task_is_its_context_alone(lab: Lab) -> None:
    hp = CAVIAHyperparameters(context_size=9, batch_norm="running")
    algorithm, batch = lab.make(CAVIA, hp), lab.batch(3)
    with torch.no_grad():
        state = algorithm.adapt(batch.support, lab.context("test", 3))
    assert {name: value.shape for name, value in state["params"].items()} == {"context": (3, 9)}
    assert state.keys() == {"params"}
    assert (state["params"]["context"].abs().amax(1) > 0).all()


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_there_is_not_is_refused(lab: Lab, layer: int) -> None:
    with pytest.raises(UsageError, match="smooth-conv has 2 of them"):
        lab.make(CAVIA, CAVIAHyperparameters(layer=layer), backbone=lab.SmoothConv)
    with pytest.raises(UsageError, match="identity has 0 of them"):
        lab.make(CAVIA, CAVIAHyperparameters(layer=layer), backbone=Identity)
