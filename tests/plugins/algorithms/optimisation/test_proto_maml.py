"""Proto-MAML: without inner steps a prototypical network, with them plain autograd from there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metabench.api.items import Items, Support, Targets
from metabench.api.recipe import Recipe
from metabench.engine.norm import norm_mode
from metabench_plugins.algorithms.metric.protonet import ProtoNet
from metabench_plugins.algorithms.optimisation.proto_maml import (
    ProtoMAML,
    ProtoMAMLHyperparameters,
)

Lab = Any
OPTIONS = ["support", "support+1", "running", "batch"]


@pytest.mark.parametrize("kept", [10, 7])
def test_without_inner_steps_its_predictions_are_a_prototypical_networks(
    lab: Lab, kept: int
) -> None:
    """Also where a support set is padded, and its classes differ in size."""
    lab = lab.with_protocol(shots=2).double()
    hp = ProtoMAMLHyperparameters(inner_steps=0, batch_norm="running")
    ours, protonet, batch = lab.make(ProtoMAML, hp), lab.make(ProtoNet), lab.batch(3)
    order = batch.support.targets.values[0].sort(stable=True).indices  # a class after the other
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[0, order[[0, 2, 4][: 10 - kept]]] = False
    support = batch.support._replace(items=batch.support.items._replace(mask=mask))
    with torch.no_grad():
        found, expected = (
            lab.logits(a, support, batch.queries).log_softmax(-1) for a in (ours, protonet)
        )
    torch.testing.assert_close(found, expected)
    if kept < 10:
        whole = lab.logits(ours, batch.support, batch.queries).log_softmax(-1)
        assert (whole - found).abs().max() > 1e-3


def by_hand(algorithm: Any, batch: Any, task: int) -> Tensor:
    """Query logits of one task in plain autograd, batch norm by each batch's own moments."""
    x, y = batch.support.items.data[task], batch.support.targets.values[task]
    phi: dict[str, Any] = dict(algorithm.backbone.named_parameters(prefix="backbone"))
    with norm_mode(algorithm, "fresh"):
        features = algorithm.backbone(x)
        means = torch.stack([features[y == k].mean(0) for k in range(5)])
        phi |= {"head.weight": 2 * means, "head.bias": -(means**2).sum(1)}
        # The inner gradient is a partial one: not by the weights through the prototypes as well.
        phi = {name: value.view_as(value) for name, value in phi.items()}
        for _ in range(algorithm.hp.inner_steps):
            loss = F.cross_entropy(functional_call(algorithm, phi, (x,)), y)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            moved = [
                v - algorithm.hp.inner_lr * g for v, g in zip(phi.values(), grads, strict=True)
            ]
            phi = dict(zip(phi, moved, strict=True))
        return functional_call(algorithm, phi, (batch.queries.data[task],))


def test_loss_and_meta_gradient_are_those_of_an_independent_implementation(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = ProtoMAMLHyperparameters(inner_lr=0.05, inner_steps=2, batch_norm="batch")
    algorithm, batch = lab.make(ProtoMAML, hp, backbone=lab.SmoothConv), lab.batch(2)
    loss = algorithm.training_step(batch, lab.context("train"))
    expected = torch.stack(
        [
            F.cross_entropy(by_hand(algorithm, batch, b), batch.query_targets.values[b])
            for b in (0, 1)
        ]
    ).mean()
    torch.testing.assert_close(loss, expected.detach())
    body = list(algorithm.backbone.parameters())
    for parameter, grad in zip(body, torch.autograd.grad(expected, body), strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_renaming_the_classes_renames_the_predictions(lab: Lab, option: str) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = ProtoMAMLHyperparameters(batch_norm=option)
    algorithm, batch = lab.make(ProtoMAML, hp), lab.batch(2)
    with torch.no_grad():
        logits = lab.logits(algorithm, batch.support, batch.queries)
        renamed = lab.logits(algorithm, lab.relabel(batch.support), batch.queries)
    torch.testing.assert_close(renamed, logits.roll(1, dims=-1), rtol=1e-9, atol=1e-9)


def test_training_may_have_other_ways_than_the_test(lab: Lab) -> None:
    recipe = Recipe(steps=2, ways=8, queries=2, lr=1e-3)
    algorithm = lab.make(ProtoMAML, recipe=recipe)
    before = algorithm.backbone.blocks[0].conv.weight.detach().clone()
    lab.train(algorithm, recipe)
    assert (algorithm.backbone.blocks[0].conv.weight - before).abs().max() > 1e-4
    batch = lab.batch(2)
    with torch.no_grad():
        assert lab.logits(algorithm, batch.support, batch.queries).shape[-1] == 5


def test_what_a_padded_slot_holds_does_not_matter(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2).double()
    hp = ProtoMAMLHyperparameters(batch_norm="running")  # the others take moments of the padding
    algorithm, batch = lab.make(ProtoMAML, hp), lab.batch(2)
    data, values = batch.support.items.data, batch.support.targets.values
    padded = Support(
        Items(
            torch.cat([data, torch.rand_like(data[:, :3])], 1), torch.arange(13).expand(2, -1) < 10
        ),
        Targets(torch.cat([values, torch.zeros_like(values[:, :3])], 1)),
        5,
    )
    with torch.no_grad():
        found = lab.logits(algorithm, padded, batch.queries)
        expected = lab.logits(algorithm, batch.support, batch.queries)
    torch.testing.assert_close(found, expected)
