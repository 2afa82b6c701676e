"""CAVIA against a network and an inner loop written out, a layer modulated as in the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.errors import UsageError
from metabench_plugins.algorithms.optimisation.cavia import CAVIA, CAVIAHyperparameters
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
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
