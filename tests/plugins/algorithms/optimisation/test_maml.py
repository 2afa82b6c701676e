"""MAML and its meta-gradient, held against finite differences, plain autograd and a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import GradientHyperparameters
from metabench_plugins.algorithms.optimisation.fomaml import FOMAML
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.backbones.identity import Identity

Lab = Any
Tensors = dict[str, Tensor]
OPTIONS = ["support", "support+1", "running", "batch"]


def meta_gradient(lab: Lab, algorithm: Any, batch: Any) -> tuple[Tensor, Tensors]:
    """The loss that a training step returns, and the gradients that it leaves."""
    algorithm.zero_grad()
    loss = algorithm.training_step(batch, lab.context("train"))
    return loss, {name: p.grad.clone() for name, p in algorithm.named_parameters()}


def network(
    params: Tensors, x: Tensor, moments: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The smooth convolutional network written out: logits, and each batch norm's own moments."""
    own = []
    for layer, (conv, norm) in enumerate((("0", "1"), ("3", "4"))):
        p = {k.removeprefix("backbone.net."): v for k, v in params.items()}
        x = F.conv2d(x, p[f"{conv}.weight"], p[f"{conv}.bias"], stride=3)
        own.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
        mean, variance = (own if moments is None else moments)[layer]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = torch.tanh(x * p[f"{norm}.weight"][:, None, None] + p[f"{norm}.bias"][:, None, None])
    return x.flatten(1) @ params["head.weight"].T + params["head.bias"], own


def query_logits(params: Tensors, option: str, support: Tensor, queries: Tensor) -> Tensor:
    """(Q, ways) in training, under one of the options of batch norm."""
    if option == "support":
        return network(params, queries, network(params, support)[1])[0]
    if option == "support+1":
        rows = [network(params, torch.cat([support, q[None]]))[0][-1] for q in queries]
        return torch.stack(rows)
    return network(params, queries)[0]


def independent(algorithm: Any, batch: Any, order: int) -> tuple[Tensor, Tensors]:
    """Loss and meta-gradient of MAML in plain autograd; with order 1, inner gradients detached."""
    theta = dict(algorithm.named_parameters())
    losses = []
    for task in range(len(batch.classes)):
        x, y = batch.support.items.data[task], batch.support.targets.values[task]
        phi = theta
        for _ in range(algorithm.hp.inner_steps):
            inner = F.cross_entropy(network(phi, x)[0], y)
            grads = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
            if order == 1:
                grads = tuple(g.detach() for g in grads)
            phi = {
                name: value - algorithm.hp.inner_lr * g
                for (name, value), g in zip(phi.items(), grads, strict=True)
            }
        logits = query_logits(phi, algorithm.hp.batch_norm, x, batch.queries.data[task])
        losses.append(F.cross_entropy(logits, batch.query_targets.values[task]))
    loss = torch.stack(losses).mean()
    found = torch.autograd.grad(loss, list(theta.values()))
    return loss.detach(), dict(zip(theta, found, strict=True))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("kind", "settings"), [(MAML, MAMLHyperparameters), (FOMAML, GradientHyperparameters)]
)
def test_the_meta_gradient_is_that_of_an_independent_implementation(
    lab: Lab, kind: Any, settings: Any, option: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = settings(inner_lr=0.3, inner_steps=3, batch_norm=option)
    algorithm, batch = lab.make(kind, hp, backbone=lab.SmoothConv), lab.batch()
    loss, gradients = meta_gradient(lab, algorithm, batch)
    expected_loss, expected = independent(algorithm, batch, order=kind.order)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_meta_gradient_is_the_finite_difference_and_fomamls_is_not(
    lab: Lab, option: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    maml_hp = MAMLHyperparameters(inner_lr=0.3, inner_steps=3, batch_norm=option)
    fomaml_hp = GradientHyperparameters(inner_lr=0.3, inner_steps=3, batch_norm=option)
    maml = lab.make(MAML, maml_hp, backbone=lab.SmoothConv)
    fomaml = lab.make(FOMAML, fomaml_hp, backbone=lab.SmoothConv)
    batch = lab.batch()
    _, second_order = meta_gradient(lab, maml, batch)
    _, first_order = meta_gradient(lab, fomaml, batch)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in maml.named_parameters()
        }
        slope = sum(float((second_order[n] * d).sum()) for n, d in direction.items())
        without = sum(float((first_order[n] * d).sum()) for n, d in direction.items())
        at = [loss_along(lab, maml, batch, direction, h) for h in (2e-4, 1e-4, -1e-4, -2e-4)]
        difference = (8 * (at[1] - at[2]) - (at[0] - at[3])) / 12e-4  # error of order h^4
        scale = max(abs(difference), 1e-2)
        assert abs(slope - difference) < 1e-6 * scale
        assert abs(without - difference) > 1e-2 * scale


def loss_along(lab: Lab, algorithm: Any, batch: Any, direction: Tensors, by: float) -> float:
    """The training loss with the parameters moved along a direction."""
    parameters = dict(algorithm.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            p.add_(direction[name], alpha=by)
    loss = float(algorithm.training_loss(batch, lab.context("train")).detach())
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(before[name])
    return loss


def test_one_step_from_a_zero_head_has_the_closed_form(lab: Lab) -> None:
    """A linear classifier on pixels: softmax regression, whose derivatives are known."""
    lab = lab.with_protocol(shots=3, queries=4).double()
    alpha, ways = 0.05, 5
    batch = lab.batch(episodes=1)
    x, y = batch.support.items.data[0].flatten(1), batch.support.targets.values[0]
    q, asked = batch.queries.data[0].flatten(1), batch.query_targets.values[0]
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    x, q = torch.cat([x, ones], 1), torch.cat([q, q.new_ones(len(q), 1)], 1)  # bias as a pixel

    def gradient(weights: Tensor, items: Tensor, labels: Tensor) -> Tensor:
        error = (items @ weights.T).softmax(1) - F.one_hot(labels, ways)
        return error.T @ items / len(items)

    zero = torch.zeros(ways, x.shape[1], dtype=torch.float64)
    phi = zero - alpha * gradient(zero, x, y)
    at_phi = gradient(phi, q, asked)
    # The Hessian at zero, where every class has probability 1 / N, applied to that gradient.
    spread = torch.eye(ways, dtype=torch.float64) / ways - 1 / ways**2
    hessian = spread @ at_phi @ (x.T @ x) / len(x)
    for kind, settings, expected in (
        (MAML, MAMLHyperparameters, at_phi - alpha * hessian),
        (FOMAML, GradientHyperparameters, at_phi),
    ):
        algorithm = lab.make(kind, settings(inner_lr=alpha, inner_steps=1), backbone=Identity)
        torch.nn.init.zeros_(algorithm.head.weight)
        torch.nn.init.zeros_(algorithm.head.bias)
        loss, found = meta_gradient(lab, algorithm, batch)
        torch.testing.assert_close(loss, F.cross_entropy(q @ phi.T, asked))
        torch.testing.assert_close(found["head.weight"], expected[:, :-1])
        torch.testing.assert_close(found["head.bias"], expected[:, -1])


def test_adapting_descends_the_support_loss_and_queries_see_the_adapted_weights(lab: Lab) -> None:
    lab = lab.with_protocol(shots=5)
    hp = MAMLHyperparameters(inner_lr=0.1, inner_steps=0, inner_steps_test=8)
    algorithm, batch = lab.make(MAML, hp), lab.batch(4)
    support, targets = batch.support, batch.support.targets.values.flatten()

    def support_loss(stage: str) -> float:
        with torch.no_grad():
            logits = lab.logits(algorithm, support, support.items, stage)
        return float(F.cross_entropy(logits.flatten(0, 1), targets))

    assert support_loss("test") < 0.7 * support_loss("train")  # 8 steps against none


def test_the_state_is_the_adapted_weights_and_the_learner_keeps_its_own(lab: Lab) -> None:
    algorithm, batch = lab.make(MAML), lab.batch(3)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    with torch.no_grad():
        state = algorithm.adapt(batch.support, lab.context("test", 3))
    assert state["params"].keys() == dict(algorithm.named_parameters()).keys()
    for name, value in state["params"].items():
        assert value.shape == (3, *before[name].shape)
    moved = state["params"]["head.weight"] - before["head.weight"]
    assert (moved.abs().amax((1, 2)) > 1e-4).all()
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, before[name]), name
