"""BOIL: the body is adapted and the head is not, against plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metabench.engine.norm import norm_mode
from metabench.errors import UsageError
from metabench_plugins.algorithms.optimisation.boil import BOIL, BOILHyperparameters
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.backbones.identity import Identity

Lab = Any


@pytest.mark.parametrize("stage", ["train", "test"])
def test_the_inner_loop_is_plain_descent_on_the_backbones_parameters(lab: Lab, stage: str) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = BOILHyperparameters(inner_lr=0.3, inner_steps=3, batch_norm="batch")
    algorithm, batch = lab.make(BOIL, hp, backbone=lab.SmoothConv), lab.batch(2)
    state = algorithm.adapt(batch.support, lab.context(stage))["params"]
    body = dict(algorithm.backbone.named_parameters(prefix="backbone"))
    assert state.keys() == body.keys()
    for task in range(2):
        phi = {name: value.detach().requires_grad_() for name, value in body.items()}
        for _ in range(3):
            with norm_mode(algorithm, "fresh"):
                logits = functional_call(algorithm, phi, (batch.support.items.data[task],))
            loss = F.cross_entropy(logits, batch.support.targets.values[task])
            grads = torch.autograd.grad(loss, list(phi.values()))
            phi = {
                name: (value - 0.3 * g).detach().requires_grad_()
                for (name, value), g in zip(phi.items(), grads, strict=True)
            }
        for name, value in phi.items():
            torch.testing.assert_close(state[name][task], value, rtol=1e-10, atol=1e-12)


def test_the_outer_loop_trains_the_head_too(lab: Lab) -> None:
    algorithm, batch = lab.make(BOIL), lab.batch(2)
    algorithm.training_step(batch, lab.context("train"))
    for name, parameter in algorithm.named_parameters():
        bias_before_norm = name.endswith("conv.bias")
        assert bias_before_norm or float(parameter.grad.abs().max()) > 1e-6, name


def test_without_inner_steps_it_is_maml(lab: Lab) -> None:
    lab = lab.double()
    ours = lab.make(BOIL, BOILHyperparameters(inner_steps=0))
    maml = lab.make(MAML, MAMLHyperparameters(inner_steps=0))
    batch = lab.batch(2)
    for algorithm in (ours, maml):
        algorithm.training_step(batch, lab.context("train"))
    for one, other in zip(ours.parameters(), maml.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_backbone_without_parameters_is_refused(lab: Lab) -> None:
    with pytest.raises(UsageError, match="identity has no parameters"):
        lab.make(BOIL, backbone=Identity)
