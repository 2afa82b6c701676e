"""MetaGrad: MAML whose inner rates, one a layer, are adapted as it descends, by hypergradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metabench import (
    Context,
    EpisodeBatch,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    PyTree,
    Recipe,
    query_cross_entropy,
)

Tensors = dict[str, Tensor]
EPSILON = 1e-20
"""Beside the product of two squared norms: a layer without a gradient keeps its rate."""


class MetaGradHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[
        float, Field(gt=0, description="inner rate of each layer before training (alpha)")
    ] = 0.4
    inner_steps: Annotated[
        int, Field(ge=0, le=1000, description="inner steps in training; rates adapt from 2 up")
    ] = 3
    hyper_lr: Annotated[
        float, Field(ge=0, description="hypergradient learning rate (beta); 0: MAML")
    ] = 0.1
    rule: Annotated[
        Literal["additive", "multiplicative"],
        Field(description="a rate changes by an amount, or by a part of itself"),
    ] = "additive"
    carry: Annotated[
        float,
        Field(ge=0, le=1, description="part of the way that the kept rates go, each meta-step"),
    ] = 0.1
    rate_range: Annotated[
        float, Field(ge=1, le=1e6, description="rates stay within this factor of inner_lr")
    ] = 3.0


class Descent(NamedTuple):
    """What the inner loop remembers from step to step.

    Attributes:
        rates: (L,) alpha, one a layer.
        before: the gradients of the step before, by name; empty before the first.
    """

    rates: Tensor
    before: Tensors


class MetaGrad(GradientAlgorithm):
    """MAML with hypergradient descent on the rate of each layer, inside the inner loop.

    Baydin, Cornish, Martinez Rubio, Schmidt, Wood, "Online Learning Rate Adaptation with
    Hypergradient Descent", ICLR 2018, https://arxiv.org/abs/1703.04782, section 2, in the inner
    loop of Finn et al. 2017 (`MAML`). It isn't MetaGrad of van Erven and Koolen 2016
    (arXiv:1604.08740), which is an online-learning method with several learning rates at once.

    A layer l is a module with weights of its own (weight and bias together). From phi = theta and
    alpha = the kept rates, with g the gradient of the support loss at phi and g' that of the step
    before, each step does
        dL(phi) / d alpha_l of the step before = -<g_l, g'_l>                      (1)
        alpha_l <- alpha_l + beta <g_l, g'_l>                        (additive)    (2a)
        alpha_l <- alpha_l (1 + beta <g_l, g'_l> / (|g_l| |g'_l|))   (multiplicative) (2b)
        phi_l <- phi_l - alpha_l g_l                                               (3)
    The first step has nothing to compare with and leaves alpha as it is. So do rates grow while a
    step could have been longer, and shrink where it went past the valley.

    The rates are learnt online over tasks, too: those that tasks i end with are handed on,
        kept <- kept + carry * (mean over i of alpha_i - kept)                     (4)
    once a meta-step. At test each task starts with the rates that training left, adapts them by (2)
    and leaves no trace. Theta descends the query loss through (1) to (3), the changing rates
    included; the kept rates aren't parameters: (4) is all that moves them.

    What differs from Baydin et al.: a rate a layer instead of one for all; rates start from the
    kept ones, not from a constant, and the gradient of the step before from none; they stay
    between inner_lr / rate_range and inner_lr * rate_range, so they are positive, and no step is so
    long that rounding decides where it ends. As in MAML, the loss is a mean, and batch norm takes
    the support set's moments.
    """

    name = "metagrad"
    reference = "Baydin et al. 2018, arXiv:1703.04782"
    summary = "MAML whose inner rates, one a layer, adapt within each task by hypergradient."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = MetaGradHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)
    tasks_apart = True  # (4) is a mean over tasks, as the loss is

    rates: Tensor

    def build(self) -> None:
        super().build()
        layers = len(_layers(self.adapted_names()))
        self.register_buffer("rates", torch.full((layers,), self.hp.inner_lr))

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        state = self.adapt(batch.support, ctx)
        with torch.no_grad():
            self.rates.lerp_(state["rates"].mean(0), self.hp.carry)  # (4)
        return query_cross_entropy(self.predict(state, batch.queries, ctx), batch.query_targets)

    def adapt_task(self, task: Any, ctx: Context) -> PyTree:
        """As MAML's; the state holds the rates that the task ended with too, (L,)."""
        phi, moments, end = self.descend(dict(self.named_parameters()), task, ctx)
        return {**self.task_state(phi, moments, task[0]), "rates": end.rates}

    def inner_state(self, adapted: Tensors) -> Descent:
        # A copy: (4) writes into the kept ones before the outer gradient is taken.
        return Descent(self.rates.clone(), {})

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Descent, t: int
    ) -> tuple[Tensors, Descent]:
        rates = opt_state.rates
        if opt_state.before:
            rates = self.adapted_rates(rates, grads, opt_state.before)
        of_layer = dict(zip(_layers(params), rates.unbind(), strict=True))
        moved = {name: phi - of_layer[_layer(name)] * grads[name] for name, phi in params.items()}
        return moved, Descent(rates, grads)  # (3)

    def adapted_rates(self, rates: Tensor, grads: Tensors, before: Tensors) -> Tensor:
        """(L,) rates after (2), from the gradients of this step and of the one before."""
        change, now, then = _products(grads, before).unbind(1)  # (L,) each; the first is -(1)
        if self.hp.rule == "multiplicative":
            change = rates * change / (now * then + EPSILON).sqrt()
        lowest, highest = (self.hp.inner_lr * self.hp.rate_range**sign for sign in (-1, 1))
        moved: Tensor = (rates + self.hp.hyper_lr * change).clamp(lowest, highest)
        return moved


def _layer(name: str) -> str:
    """The layer that a parameter belongs to: `backbone.blocks.0.conv` has a weight and a bias."""
    return name.rpartition(".")[0]


def _layers(names: Iterable[str]) -> list[str]:
    """The layers of parameters, in order; that of the rates."""
    return list(dict.fromkeys(map(_layer, names)))


def _products(one: Tensors, other: Tensors) -> Tensor:
    """(L, 3) inner products of each layer: <one, other>, <one, one>, <other, other>."""
    u, v = (torch.cat([value.flatten() for value in part.values()]) for part in (one, other))
    sizes: dict[str, int] = {}
    for name, value in one.items():
        sizes[_layer(name)] = sizes.get(_layer(name), 0) + value.numel()
    # All tensors at once, as there may be many small ones.
    parts = torch.split(torch.stack([u * v, u * u, v * v]), list(sizes.values()), dim=1)
    return torch.stack([part.sum(1) for part in parts])
