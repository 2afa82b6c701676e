"""Reptile: moves the initialisation towards the weights that training on a task reaches."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

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
    Support,
    over_tasks,
    tree_map,
    unroll,
)

Tensors = dict[str, Tensor]
BETA2, EPSILON = 0.999, 1e-8
WEIGHTS = "weights"
"""The one entry of the inner loop's parameters: all of the network's, end to end."""
LOSS = "loss"


class ReptileHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="inner Adam's learning rate")] = 3e-3
    inner_steps: Annotated[int, Field(ge=1, le=1000, description="inner steps in training")] = 5
    inner_steps_test: Annotated[
        int | None, Field(ge=0, le=1000, description="inner steps at test; none: as in training")
    ] = 20
    inner_batch: Annotated[
        int | None,
        Field(ge=1, description="support items an inner step in training; none: all of them"),
    ] = 10
    inner_batch_test: Annotated[
        int | None, Field(ge=1, description="support items an inner step at test; none: all")
    ] = 5
    beta1: Annotated[float, Field(ge=0, lt=1, description="inner Adam's momentum")] = 0.0


class Adam(NamedTuple):
    """What the inner optimiser remembers, over all P weights.

    Attributes:
        first: (P,) moving average of the gradients; None where beta1 is 0.
        second: (P,) moving average of their squares.
        steps: () how many steps are behind both; a tensor, so that nobody waits to read it.
    """

    first: Tensor | None
    second: Tensor
    steps: Tensor


class Reptile(GradientAlgorithm):
    """Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018.

    https://arxiv.org/abs/1803.02999, Algorithms 1 and 2. Train on a task for a few steps, then move
    the initialisation a part of the way towards the weights that came out. No query set and no
    outer gradient is needed; to first order it maximises the inner product of the gradients of
    different mini-batches of a task.

    Inner loop on task i, from phi = theta, k mini-batches of its support set:
        phi_i = U_i^k(theta), U one step of Adam with beta1 = 0                    (1)
    Outer loop over n tasks:
        theta <- theta + epsilon * (1/n) * sum over i of (phi_i - theta)           (2)
    `training_step` leaves theta - mean phi as the gradient, so a recipe with plain SGD has epsilon
    as its learning rate (1, falling to 0 linearly); the paper allows Adam there too (section 3).

    As in the authors' code:
    - Mini-batches go through the support set in random order, anew in each pass.
    - Adam's moments are not reset: each task begins at theta, but with the moments and the step
      count that the task before it left, also within a meta-batch. At test every task begins with
      those that training left, and leaves no trace.
    - Training uses more shots than the test (10), and no queries.

    What differs:
    - The default settings are for thousands of meta-steps. The paper's are 100,000 or more with an
      inner learning rate of 1e-3 (5-way Omniglot), 50 inner steps at test, 5 tasks a meta-step.
    - Adam's epsilon is PyTorch's, added to the bias-corrected root (TensorFlow: to the raw one).
    - A mini-batch is never larger than the support set; the authors' would repeat items.
    - In training batch norm uses each mini-batch's own moments, as the authors' does. At test
      `batch_norm = "support+1"` is the paper's inductive mode, `"batch"` its transductive one;
      the default `"support"` is the former's spirit at a fraction of its cost. With `"running"`
      the averages follow the inner mini-batches.
    """

    name = "reptile"
    reference = "Nichol et al. 2018, arXiv:1803.02999"
    summary = "Moves the initialisation towards the weights that training on a task reaches."
    hyperparameters = ReptileHyperparameters
    recipe = Recipe(
        steps=4000,
        shots=10,
        queries=0,
        optimizer="sgd",
        lr=1.0,
        schedule="linear",
        select="last",
    )
    order = 1

    first_moments: Tensor
    second_moments: Tensor
    adam_steps: Tensor

    def build(self) -> None:
        super().build()
        weights = sum(parameter.numel() for parameter in self._adapted().values())  # P
        if self.hp.beta1 > 0:
            self.register_buffer("first_moments", torch.zeros(weights))
        self.register_buffer("second_moments", torch.zeros(weights))
        self.register_buffer("adam_steps", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        theta, adam, moments = self._packed(), self._adam(), self.norm_buffers()
        orders = self.mini_batches(batch.support, ctx)
        tasks = len(batch.classes)
        total = torch.zeros_like(theta)
        losses = []
        for task in range(tasks):  # one after the other: Adam's moments are handed on
            data, labels, mask, order = _task((*_sets(batch.support), orders), task)
            phi, moments, adam = self.inner_loop(
                theta, moments, (data, labels, mask), order, adam, ctx
            )
            losses.append(moments.pop(LOSS))
            total += phi
        self._keep(adam, moments)
        step = self._unpacked(theta - total / tasks)  # the negative of (2), without epsilon
        for name, parameter in self.named_parameters():
            parameter.grad = step[name]
        return torch.stack(losses).mean()

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        theta, adam, moments = self._packed(), self._adam(), self.norm_buffers()
        orders = self.mini_batches(support, ctx)

        def one_task(data: PyTree, labels: Tensor, mask: Tensor | None, order: Any) -> PyTree:
            phi, after, _ = self.inner_loop(theta, moments, (data, labels, mask), order, adam, ctx)
            after.pop(LOSS, None)
            return self.task_state(self._unpacked(phi), after, data)

        return over_tasks(one_task, *_sets(support), orders)

    def mini_batches(self, support: Support, ctx: Context) -> Tensor | None:
        """(B, steps, batch) positions in the support sets; None: all of them in each step."""
        size = support.targets.values.shape[1]
        batch = self.hp.inner_batch if ctx.training else self.hp.inner_batch_test
        steps = self.inner_steps(ctx)
        if batch is None or batch >= size or steps == 0:
            return None
        passes = math.ceil(steps * batch / size)
        draws = ctx.rng.uniform(passes, size, dtype=torch.float64)
        order = draws.argsort(dim=-1, stable=True).flatten(1)  # (B, passes * S)
        return order[:, : steps * batch].view(len(order), steps, batch)

    def inner_loop(
        self,
        theta: Tensor,
        moments: Tensors,
        support: PyTree,
        order: Tensor | None,
        adam: Adam,
        ctx: Context,
    ) -> tuple[Tensor, Tensors, Adam]:
        """(1) on one task.

        Args:
            theta: (P,) weights to begin with.
            moments: batch norm's.
            support: items (S, ...), labels (S,), and mask (S,) or None.
            order: (steps, batch) positions of each mini-batch; None: all of the support set.
            adam: what the inner optimiser remembers.
            ctx: the call's context.

        Returns:
            phi (P,); batch norm's moments, and the last step's loss under `LOSS`; Adam after it.
        """
        follows = self.hp.batch_norm == "running" and ctx.training
        mode = "update" if follows else self.support_mode(ctx)

        def loss(params: Tensors, state: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
            here = batch if order is None else tree_map(lambda x: x[order[t]], batch)
            before = {name: value for name, value in state.items() if name != LOSS}
            weights = self._unpacked(params[WEIGHTS])
            value, after = self.inner_loss(weights, before, here, t, mode)
            return value, {**after, LOSS: value.detach()}

        start, steps = {WEIGHTS: theta}, self.inner_steps(ctx)
        phi, after, adam = unroll(
            loss, start, moments, support, adam, self.inner_update, [WEIGHTS], steps, self.order
        )
        return phi[WEIGHTS], dict(after), adam

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Adam, t: int
    ) -> tuple[Tensors, Adam]:
        """One step of Adam (Kingma and Ba 2015, Algorithm 1)."""
        # Not `algorithms/adam.py`'s, which begins anew with each task: here moments and their age
        # are handed on from task to task, and beta1 = 0 keeps no first moment.
        gradient, beta1 = grads[WEIGHTS], self.hp.beta1
        steps = opt_state.steps + 1
        first = None if opt_state.first is None else opt_state.first.lerp(gradient, 1 - beta1)
        second = (opt_state.second * BETA2).addcmul(gradient, gradient, value=1 - BETA2)
        direction = gradient if first is None else first
        count = steps.double()  # the corrections are near 1, and matter
        size = (self.hp.inner_lr / (1 - beta1**count)).to(gradient.dtype)
        root = second.sqrt() / (1 - BETA2**count).sqrt().to(gradient.dtype) + EPSILON
        phi = params[WEIGHTS] - size * direction / root
        return {WEIGHTS: phi}, Adam(first, second, steps)

    # The weights as one vector: Adam is a handful of operations on it, not on each of 18 tensors.

    def _adapted(self) -> Tensors:
        own: Tensors = dict(self.named_parameters())
        return {name: own[name] for name in self.adapted_names()}

    def _packed(self) -> Tensor:
        """(P,) a copy of the network's parameters, end to end."""
        return torch.cat([p.detach().flatten() for p in self._adapted().values()])

    def _unpacked(self, weights: Tensor) -> Tensors:
        """(P,) back to named parameters, as views."""
        like = self._adapted()
        parts = torch.split(weights, [p.numel() for p in like.values()])
        return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}

    def _adam(self) -> Adam:
        first = self.first_moments if self.hp.beta1 > 0 else None
        return Adam(first, self.second_moments, self.adam_steps)

    def _keep(self, adam: Adam, moments: Tensors) -> None:
        """Store what the next task begins with."""
        self.second_moments.copy_(adam.second)
        self.adam_steps.copy_(adam.steps)
        if adam.first is not None:
            self.first_moments.copy_(adam.first)
        for name, value in self.norm_buffers().items():
            value.copy_(moments[name])


def _sets(support: Support) -> tuple[PyTree, Tensor, Tensor | None]:
    """Items (B, S, ...), labels (B, S), mask (B, S) or None."""
    return support.items.data, support.targets.values, support.items.mask


def _task(sets: PyTree, task: int) -> Any:
    """One task's slice of tensors (B, ...)."""
    return tree_map(lambda x: x[task], sets)
