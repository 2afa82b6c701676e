"""Meta-SGD: by its rates it is MAML, ANIL or BOIL; a rate's gradient has a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from metabench import GradientHyperparameters
from metabench_plugins.algorithms.optimisation.anil import ANIL
from metabench_plugins.algorithms.optimisation.boil import BOIL, BOILHyperparameters
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.algorithms.optimisation.meta_sgd import MetaSGD, MetaSGDHyperparameters
from metabench_plugins.backbones.identity import Identity

Lab = Any


@pytest.mark.parametrize(
    ("kind", "settings", "adapted"),
    [
        (MAML, MAMLHyperparameters, ""),
        (ANIL, GradientHyperparameters, "head."),
        (BOIL, BOILHyperparameters, "backbone."),
    ],
    ids=["maml", "anil", "boil"],
)
def test_with_one_rate_for_some_and_zero_for_others_it_is_another_algorithm(
    lab: Lab, kind: Any, settings: Any, adapted: str
) -> None:
    lab = lab.with_protocol(shots=2, queries=3).double()
    given = {"inner_lr": 0.3, "inner_steps": 3}
    ours = lab.make(MetaSGD, MetaSGDHyperparameters(**given))
    other = lab.make(kind, settings(**given))
    with torch.no_grad():
        for name, rate in zip(ours.adapted_names(), ours.rates, strict=True):
            rate.fill_(0.3 if name.startswith(adapted) else 0)
    batch = lab.batch(2)
    losses = [a.training_step(batch, lab.context("train")) for a in (ours, other)]
    torch.testing.assert_close(*losses)
    found = dict(ours.named_parameters())
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        logits = [lab.logits(a, batch.support, batch.queries) for a in (ours, other)]
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


def test_the_gradient_by_a_rate_is_minus_the_product_of_both_gradients(lab: Lab) -> None:
    """One step, (1): dL/d alpha = -(gradient of the support at theta) o (of the queries at phi)."""
    lab = lab.with_protocol(shots=2, queries=3).double()
    hp = MetaSGDHyperparameters(inner_lr=0.05, inner_steps=1)
    algorithm, batch = lab.make(MetaSGD, hp, backbone=Identity), lab.batch(1)
    with torch.no_grad():
        for rate in algorithm.rates:
            rate += 0.02 * torch.randn_like(rate)
    algorithm.training_step(batch, lab.context("train", 1))
    weight, bias = algorithm.head.weight.detach(), algorithm.head.bias.detach()

    def gradients(weight: Any, bias: Any, items: Any, labels: Any) -> Any:
        """Of softmax regression, written out."""
        x = items[0].flatten(1)
        error = (x @ weight.T + bias).softmax(1) - F.one_hot(labels[0], 5)
        return error.T @ x / len(x), error.mean(0)

    support, rates = batch.support, [rate.detach() for rate in algorithm.rates]
    before = gradients(weight, bias, support.items.data, support.targets.values)
    phi = [p - a * g for p, a, g in zip((weight, bias), rates, before, strict=True)]
    after = gradients(*phi, batch.queries.data, batch.query_targets.values)
    for rate, one, other in zip(algorithm.rates, before, after, strict=True):
        torch.testing.assert_close(rate.grad, -one * other)


def test_rates_are_trained_and_saved_with_the_weights(lab: Lab) -> None:
    algorithm = lab.make(MetaSGD)
    assert len(algorithm.rates) == len(algorithm.adapted_names())
    before = [rate.detach().clone() for rate in algorithm.rates]
    lab.train(algorithm, MetaSGD.recipe.model_copy(update={"steps": 2, "validate_every": 0}))
    # A bias before a batch norm gets no gradient but rounding.
    pairs = zip(algorithm.rates, before, strict=True)
    moved = [float((rate.detach() - start).abs().max()) for rate, start in pairs]
    assert sorted(moved)[4] > 1e-3
    assert sum(name.startswith("rates.") for name in algorithm.state_dict()) == len(before)
