"""ANIL: the head alone is adapted, on features computed once; the numbers are the full loop's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metabench import GradientHyperparameters
from metabench.engine.gradient import GradientAlgorithm
from metabench_plugins.algorithms.optimisation.anil import ANIL
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters

Lab = Any
OPTIONS = ["support", "support+1", "running", "batch"]


class HeadOnlyMAML(MAML):
    """MAML restricted to the head, the whole network run at every inner step."""

    name = "head-only-maml"

    def adapted_names(self) -> list[str]:
        return ["head.weight", "head.bias"]


def both(lab: Lab, option: str, **settings: Any) -> list[GradientAlgorithm]:
    given = {"inner_lr": 0.3, "inner_steps": 4, "batch_norm": option, **settings}
    return [
        lab.make(ANIL, GradientHyperparameters(**given)),
        lab.make(HeadOnlyMAML, MAMLHyperparameters(**given)),
    ]


@pytest.mark.parametrize("option", OPTIONS)
def test_predictions_are_those_of_running_the_whole_network_at_each_step(
    lab: Lab, option: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    batch = lab.batch(3)
    with torch.no_grad():
        ours, full = [
            lab.logits(algorithm, batch.support, batch.queries)
            for algorithm in both(lab, option, inner_steps_test=9)
        ]
    torch.testing.assert_close(ours, full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", OPTIONS)
def test_meta_gradients_of_head_and_backbone_are_those_of_the_whole_network(
    lab: Lab, option: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    batch = lab.batch(2)
    ours, full = both(lab, option)
    losses = [a.training_step(batch, lab.context("train")) for a in (ours, full)]
    torch.testing.assert_close(*losses)
    expected = dict(full.named_parameters())
    for name, parameter in ours.named_parameters():
        # To 1e-9: behind a batch norm a bias has no gradient, and what is left is rounding.
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)
    for name, moments in ours.norm_buffers().items():
        torch.testing.assert_close(moments, full.norm_buffers()[name])


def test_the_state_holds_the_head_alone(lab: Lab) -> None:
    algorithm, batch = lab.make(ANIL), lab.batch(2)
    with torch.no_grad():
        state = algorithm.adapt(batch.support, lab.context())
    assert state["params"].keys() == {"head.weight", "head.bias"}
    for name, value in state["params"].items():
        own = dict(algorithm.named_parameters())[name]
        assert (value - own).abs().amax() > 1e-4


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("stage", ["train", "test"])
def test_the_backbone_sees_each_support_set_once_however_many_steps(
    lab: Lab, option: str, stage: str
) -> None:
    hp = GradientHyperparameters(inner_steps=7, batch_norm=option)
    algorithm, batch = lab.make(ANIL, hp), lab.batch(3)
    seen: list[int] = []
    algorithm.backbone.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    algorithm.adapt(batch.support, lab.context(stage, 3))
    assert seen == [5, 5, 5]


def test_the_outer_loop_trains_the_backbone_too(lab: Lab) -> None:
    algorithm, batch = lab.make(ANIL), lab.batch(2)
    algorithm.training_step(batch, lab.context("train"))
    for name, parameter in algorithm.named_parameters():
        bias_before_norm = name.endswith("conv.bias")
        assert bias_before_norm or float(parameter.grad.abs().max()) > 1e-6, name
