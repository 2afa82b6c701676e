"""First-order MAML: its meta-gradient is the queries' gradient at the adapted weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from metabench import GradientHyperparameters
from metabench.api.items import Items, Support, Targets
from metabench.engine.norm import norm_mode
from metabench_plugins.algorithms.optimisation.fomaml import FOMAML
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters

Lab = Any


@pytest.mark.parametrize("option", ["support", "batch"])
def test_the_meta_gradient_is_the_mean_of_the_tasks_gradients_at_their_adapted_weights(
    lab: Lab, option: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = GradientHyperparameters(inner_steps=3, batch_norm=option)
    algorithm, batch = lab.make(FOMAML, hp, backbone=lab.SmoothConv), lab.batch(2)
    algorithm.training_step(batch, lab.context("train"))
    with torch.no_grad():
        adapted = algorithm.adapt(batch.support, lab.context("train"))["params"]
    expected = {name: torch.zeros_like(p) for name, p in algorithm.named_parameters()}
    for task in range(2):
        phi = {name: value[task].clone().requires_grad_() for name, value in adapted.items()}
        tensors = {**phi, **algorithm.norm_buffers()}
        if option == "support":
            with norm_mode(algorithm, "record"):
                functional_call(algorithm, tensors, (batch.support.items.data[task],))
        with norm_mode(algorithm, "stored" if option == "support" else "fresh"):
            logits = functional_call(algorithm, tensors, (batch.queries.data[task],))
        loss = torch.nn.functional.cross_entropy(logits, batch.query_targets.values[task])
        for (name, _), grad in zip(
            phi.items(), torch.autograd.grad(loss, list(phi.values())), strict=True
        ):
            expected[name] += grad / 2
    for name, parameter in algorithm.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_it_adapts_and_predicts_as_maml_with_the_same_weights(lab: Lab) -> None:
    first = lab.make(FOMAML, GradientHyperparameters(inner_steps=4))
    second = lab.make(MAML, MAMLHyperparameters(inner_steps=4))
    batch = lab.batch(3)
    with torch.no_grad():
        ours = lab.logits(first, batch.support, batch.queries)
        theirs = lab.logits(second, batch.support, batch.queries)
    assert torch.equal(ours, theirs)


def test_without_inner_steps_it_is_maml_in_training_too(lab: Lab) -> None:
    lab = lab.double()
    first = lab.make(FOMAML, GradientHyperparameters(inner_steps=0))
    second = lab.make(MAML, MAMLHyperparameters(inner_steps=0))
    batch = lab.batch(2)
    first.training_step(batch, lab.context("train"))
    second.training_step(batch, lab.context("train"))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_padded_support_set_counts_its_real_items_only(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2).double()
    hp = GradientHyperparameters(batch_norm="running")  # the others take moments of the padding
    algorithm, batch = lab.make(FOMAML, hp), lab.batch(2)
    real = torch.arange(10) % 2 == 0
    data, values = batch.support.items.data, batch.support.targets.values
    noise = torch.where(real[None, :, None, None, None], data, torch.rand_like(data))
    padded = Support(Items(noise, real.expand(2, -1)), Targets(values), 5)
    short = Support(Items(data[:, real]), Targets(values[:, real]), 5)
    with torch.no_grad():
        found = lab.logits(algorithm, padded, batch.queries)
        expected = lab.logits(algorithm, short, batch.queries)
    torch.testing.assert_close(found, expected)
