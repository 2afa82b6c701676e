"""The outer gradient in mixed mode: back through the stored trajectory of an inner loop.

Reverse mode through T inner steps keeps the graph of each step, activations and all. Here the steps
are taken without a graph and only their points are kept, a copy of the adapted parameters a step;
of a long loop some points only, between which is walked again (`stride_of`). On the way back each
step is linearised anew at its point, and the second derivatives come as forward-over-reverse
products: the derivative of the inner gradient along one direction (Pearlmutter 1994; for bilevel
problems Kemaev et al. 2025, "MixFlow-MG", arXiv:2505.00793). The result is that of reverse mode;
memory does not grow with the graphs of the steps, and each step costs about one gradient more, in a
long loop two.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from metabench.engine.lift import flatten, restore
from metabench.engine.norm import as_transformed

Tensors = dict[str, Tensor]
Flat = list[Tensor]
Cotangents = list[Tensor | None]
"""None stands for zeros."""
LONG = 16
"""Steps from which on not all points of a trajectory are kept."""


class Loop(NamedTuple):
    """An inner loop as functions of all that the outer gradient may want.

    Attributes:
        loss: `loss(params, buffers, batch, t)` -> (scalar, buffers).
        update: `update(adapted, grads, opt_state, t)` -> (adapted, opt_state).
        gradient: `gradient(objective, point, buffers, t)` -> (grads, buffers), without a graph.
        steps: how many.
    """

    loss: Callable[..., tuple[Tensor, Tensors]]
    update: Callable[..., tuple[Tensors, Any]]
    gradient: Callable[..., tuple[Tensors, Tensors]]
    steps: int


def unroll_mixed(
    loop: Loop,
    adapted: Tensors,
    buffers: Tensors,
    opt_state: Any,
    constant: Tensors,
    batch: Any,
) -> tuple[Tensors, Tensors, Any]:
    """The steps of `unroll` with `order = 2`; its outer gradient can be taken once.

    What the loss or the update should be differentiated by must be handed to the loop: in its
    parameters, buffers, state or batch. What they hold beside these counts as constant.

    Returns:
        the adapted parameters, the buffers and the optimiser's state after the last step.
    """
    # The way back begins where the loop began; until then running averages may have moved.
    buffers = {name: value.clone() for name, value in buffers.items()}
    inputs, shape = flatten([[adapted, buffers, opt_state], [constant, batch]], floating=True)
    shapes: list[Any] = []
    outputs = _Unrolled.apply(loop, shape, shapes, *inputs)
    result: tuple[Tensors, Tensors, Any] = tuple(restore(shapes[0], outputs))
    return result


class _Unrolled(torch.autograd.Function):
    """The state after the loop, of all tensors that went in: [[state], [outside]], flattened."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, shape: Any, shapes: list[Any], *inputs: Tensor) -> Any:
        state, outside = restore(shape, [x.detach() for x in inputs])
        trajectory: list[Passed] = []
        stride = stride_of(loop.steps)
        state = _walked(loop, state, outside, range(loop.steps), trajectory, stride)
        outputs, shape_of_result = flatten(state, floating=True)
        shapes.append(shape_of_result)
        kept, ctx.trajectory = flatten(trajectory, floating=True)
        ctx.save_for_backward(*inputs, *kept)
        ctx.set_materialize_grads(False)
        ctx.inputs, ctx.shape, ctx.loop = len(inputs), shape, loop
        # A tensor may come out as it went in, which autograd takes for a change in place.
        return tuple(x.clone() for x in outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        saved = [x.detach() for x in ctx.saved_tensors]
        inputs, kept = saved[: ctx.inputs], saved[ctx.inputs :]
        first, outside = restore(ctx.shape, inputs)
        states = len(flatten(first, floating=True)[0])
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3 + states :]) if needed]
        trajectory: list[Passed] = restore(ctx.trajectory, kept)
        carried: Cotangents = list(cotangents)
        totals: Cotangents = [None] * (len(inputs) - states)
        for t, passed in _backwards(ctx.loop, trajectory, outside):
            step = _Step(ctx.loop, t, *passed, outside, wanted)
            carried, more = step.back(carried)
            for i, value in zip(wanted, more, strict=True):
                totals[i] = _sum(totals[i], value)
        return None, None, None, *carried, *totals


def stride_of(steps: int) -> int:
    """Of how many steps one point is kept: the square root of a long loop's; of a short one all.

    The points between are walked through again, at the price of one more gradient a step. So T
    steps hold about 2 sqrt(T) points at a time (Chen et al. 2016, arXiv:1604.06174, section 4.3).
    """
    return math.isqrt(steps) if steps >= LONG else 1


class Passed(NamedTuple):
    """A step of the trajectory.

    Attributes:
        state: [adapted parameters, buffers, optimiser's state] before it.
        grads: the inner gradient there; None where it is not kept, or hasn't any influence.
    """

    state: Any
    grads: Tensors | None


def _walked(
    loop: Loop, state: Any, outside: Any, steps: range, kept: list[Passed], stride: int = 1
) -> Any:
    """The state after these steps, none of which leaves a graph; of each `stride` one is `kept`."""
    constant, batch = outside
    linear = getattr(loop.update, "linear_in_gradient", False)
    for t in steps:
        adapted, buffers, opt_state = state

        def objective(here: Tensors, moments: Tensors, t: int) -> tuple[Tensor, Tensors]:
            return loop.loss({**constant, **here}, moments, batch, t)

        point = {name: value.detach() for name, value in adapted.items()}
        with as_transformed():  # as the step is linearised
            grads, after = loop.gradient(objective, point, buffers, t)
        if t % stride == 0:
            # An update that says so is given zeros on the way back; between points grads come anew.
            kept.append(Passed(state, None if linear or stride > 1 else grads))
        moved, opt_state = loop.update(adapted, grads, opt_state, t)
        state = [{name: moved[name] for name in adapted}, after, opt_state]
    return state


def _backwards(loop: Loop, trajectory: list[Passed], outside: Any) -> Iterator[tuple[int, Passed]]:
    """All steps, the last one first; where not all were kept, those between by another walk."""
    stride = stride_of(loop.steps)
    for first in reversed(range(0, loop.steps, stride)):
        segment = [trajectory[first // stride]]
        if stride > 1:
            start, segment = segment[0].state, []
            steps = range(first, min(first + stride, loop.steps))
            _walked(loop, start, outside, steps, segment)
        for t in reversed(range(first, first + len(segment))):
            yield t, segment[t - first]


class _Step:
    """One inner step at the point where it was taken.

    Args:
        loop, t: of which it is the t-th.
        state: [adapted parameters, buffers, optimiser's state] before it.
        grads: the inner gradient there; None counts as zeros.
        outside: [constant parameters, batch].
        wanted: numbers of the tensors of `outside` whose gradient is asked for.
    """

    def __init__(
        self, loop: Loop, t: int, state: Any, grads: Tensors | None, outside: Any, wanted: list[int]
    ) -> None:
        self.loop, self.t, self.wanted = loop, t, wanted
        if grads is None:
            grads = {name: torch.zeros_like(value) for name, value in state[0].items()}
        (
            (self.point, self.of_point),
            (self.moments, self.of_moments),
            (self.memory, self.of_memory),
        ) = (flatten(part, floating=True) for part in state)
        self.slope = flatten(grads, floating=True)[0]
        self.outside, self.of_outside = flatten(outside, floating=True)

    def back(self, cotangents: Cotangents) -> tuple[Cotangents, Flat]:
        """Cotangents of the state before the step, and of what is wanted of the outside.

        Args:
            cotangents: of the state after the step, flattened.
        """
        names = len(self.point)
        outs = len(cotangents) - len(self._moved(self.point, self.slope, self.memory)[1])
        of_point, of_moments, of_memory = (
            cotangents[:names],
            cotangents[names:outs],
            cotangents[outs:],
        )
        moved, back = _vjp(self._moved, self.point, self.slope, self.memory)
        to_point, to_slope, to_memory = back(
            (_zeros(of_point, moved[0]), _zeros(of_memory, moved[1]))
        )
        chosen = [self.outside[i] for i in self.wanted]

        # The inner gradient's derivative along `to_slope` is, the Hessian being symmetric, its
        # product with it; that of the other partial derivatives is the mixed one's.
        def slopes(point: Flat) -> Any:
            return grad(self._loss, argnums=(0, 1, 2), has_aux=True)(point, self.moments, chosen)[0]

        _set_up_forward_mode()
        along: Any = jvp(slopes, (self.point,), (to_slope,))
        second, to_moments, to_chosen = along[1]
        to_point = [a + b for a, b in zip(to_point, second, strict=True)]
        if any(cotangent is not None for cotangent in of_moments):

            def after(point: Flat, moments: Flat, chosen: Flat) -> Flat:
                return flatten(self._loss(point, moments, chosen)[1], floating=True)[0]

            made, back = _vjp(after, self.point, self.moments, chosen)
            parts = back(_zeros(of_moments, made))
            sums = zip((to_point, to_moments, to_chosen), parts, strict=True)
            to_point, to_moments, to_chosen = (
                [a + b for a, b in zip(one, other, strict=True)] for one, other in sums
            )
        return [*to_point, *to_moments, *to_memory], to_chosen

    def _moved(self, point: Flat, slope: Flat, memory: Flat) -> tuple[Flat, Flat]:
        """The optimiser's step: parameters and its state after it."""
        here = restore(self.of_point, point)
        grads = restore(self.of_point, slope)
        moved, state = self.loop.update(here, grads, restore(self.of_memory, memory), self.t)
        moved = {name: moved[name] for name in here}
        return flatten(moved, floating=True)[0], flatten(state, floating=True)[0]

    def _loss(self, point: Flat, moments: Flat, chosen: Flat) -> tuple[Tensor, Tensors]:
        """The inner objective, and the buffers after it."""
        outside = list(self.outside)
        for i, value in zip(self.wanted, chosen, strict=True):
            outside[i] = value
        constant, batch = restore(self.of_outside, outside)
        params = {**constant, **restore(self.of_point, point)}
        return self.loop.loss(params, restore(self.of_moments, moments), batch, self.t)


_setting_up = threading.Lock()


@functools.cache
def _set_up_forward_mode() -> None:
    """Have PyTorch's forward mode set itself up, without a warning that is meant for nobody here.

    The first dual tensor of a process has PyTorch script decompositions of its own, in
    `torch._decomp.decompositions_for_jvp`, and so warn of its own call of `torch.jit.script`. Once
    and beforehand: filters are the whole process's, and tasks may be shared among threads.
    """
    one = torch.ones(())
    with _setting_up, warnings.catch_warnings():
        of_script = r"`torch\.jit\.script` is (deprecated|not supported)"
        warnings.filterwarnings("ignore", of_script, FutureWarning, r"torch\.jit\._script")
        jvp(torch.neg, (one,), (one,))


def _vjp(function: Callable[..., Any], *at: Flat) -> Any:
    """(its value, the function from cotangents of the value to those of the arguments)."""
    return vjp(function, *at)


def _zeros(cotangents: Cotangents, like: Flat) -> Flat:
    return [
        torch.zeros_like(value) if found is None else found
        for found, value in zip(cotangents, like, strict=True)
    ]


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other
