"""The inner loop: gradient descent on one task as a pure function, in any of its engines."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.func import grad

from metabench.engine.compiled import compiled_gradient
from metabench.engine.lift import inside_transform
from metabench.engine.mixed import Loop, unroll_mixed
from metabench.engine.modes import current_engine

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors, Any, int], tuple[Tensor, Tensors]]
"""`loss(params, buffers, batch, t)` -> (scalar, buffers after the call) at inner step t."""
Update = Callable[[Tensors, Tensors, Any, int], tuple[Tensors, Any]]
"""`update(params, grads, opt_state, t)` -> (params, opt_state), over the adapted parameters."""
U = TypeVar("U", bound=Callable[..., Any])
Order = Literal[1, 2]
Objective = Callable[[Tensors, Tensors, int], tuple[Tensor, Tensors]]


def unroll(
    loss: Loss,
    params: Tensors,
    buffers: Tensors,
    batch: Any,
    opt_state: Any,
    update: Update,
    which: Collection[str],
    steps: int,
    order: Order,
) -> tuple[Tensors, Tensors, Any]:
    """Take `steps` inner steps on one task.

    Every engine (`metabench.engine.modes`) gives the same result. What the outer gradient shall
    reach must be in the arguments: parameters, buffers, batch or the optimiser's state.

    Args:
        loss: the inner objective, see `Loss`.
        params: all parameters, by name.
        buffers: what the network changes as it runs (batch-norm moments), by name.
        batch: the task's data, handed to `loss` as it is.
        opt_state: the inner optimiser's state, handed to `update`.
        update: the inner optimiser's step, see `Update`.
        which: names of the parameters that are adapted; the others are constants of the loop.
        steps: how many steps; 0 returns everything as it came.
        order: 2 keeps the graph of each step, so that an outer gradient goes through the inner
            gradients (Finn et al. 2017, eq. 1); 1 treats them as constants (first order).

    Returns:
        all parameters, the adapted ones replaced; the buffers and the optimiser's state after
        the last step.
    """
    adapted = {name: params[name] for name in which}
    constant = {name: value for name, value in params.items() if name not in adapted}
    engine = current_engine()
    if engine == "mixed" and order == 2:
        loop = Loop(loss, update, _first_order, steps)
        adapted, buffers, opt_state = unroll_mixed(
            loop, adapted, buffers, opt_state, constant, batch
        )
        return {**constant, **adapted}, buffers, opt_state
    # Nothing of a first-order inner gradient reaches the outer graph, so none of it is recorded.
    fixed = constant if order == 2 else _detached(constant)

    def objective(here: Tensors, state: Tensors, t: int) -> tuple[Tensor, Tensors]:
        return loss({**fixed, **here}, state, batch, t)

    for t in range(steps):
        if engine == "compile":
            grads, buffers = compiled_gradient(loss, adapted, fixed, buffers, batch, t)
            if order == 1:
                grads, buffers = _detached(grads), _detached(buffers)
        elif order == 1:
            grads, buffers = _first_order(objective, adapted, buffers, t)
        else:
            grads, buffers = _second_order(objective, adapted, buffers, t)
        adapted, opt_state = update(adapted, grads, opt_state, t)
    return {**constant, **adapted}, buffers, opt_state


def _second_order(
    objective: Objective, adapted: Tensors, buffers: Tensors, t: int
) -> tuple[Tensors, Tensors]:
    """The gradient and the buffers after the call, both with their graphs."""
    if inside_transform():
        slopes, after = grad(objective, has_aux=True)(adapted, buffers, t)
        return slopes, after
    with torch.enable_grad():
        # Views, as the batch and the buffers may hang on the same tensors by another way. What
        # needs no outer gradient is a constant.
        leaves = {
            name: value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            for name, value in adapted.items()
        }
        value, after = objective(leaves, buffers, t)
        if not value.requires_grad:  # it hangs on nothing that is adapted
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}, after
        found = torch.autograd.grad(
            value,
            list(leaves.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(leaves, found, strict=True)), after


def _first_order(
    objective: Objective, adapted: Tensors, buffers: Tensors, t: int
) -> tuple[Tensors, Tensors]:
    """The gradient and the buffers after the call, neither with a graph.

    Plain autograd takes 0.7 of the time of `torch.func.grad` on small networks.
    """
    point = _detached(adapted)
    if inside_transform():
        slopes, after = grad(objective, has_aux=True)(point, buffers, t)
    else:
        leaves = {name: value.requires_grad_() for name, value in point.items()}
        with torch.enable_grad():
            value, after = objective(leaves, buffers, t)
        slopes = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        if value.requires_grad:
            found = torch.autograd.grad(
                value, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            slopes = dict(zip(leaves, found, strict=True))
    # The batch and the buffers may carry a graph of their own.
    return _detached(slopes), _detached(after)


def _detached(tensors: Tensors) -> Tensors:
    return {name: value.detach() for name, value in tensors.items()}


def sgd(lr: float) -> Update:
    """Plain gradient descent: `params - lr * grads`, no state."""

    def update(params: Tensors, grads: Tensors, opt_state: Any, t: int) -> tuple[Tensors, Any]:
        return {name: value - lr * grads[name] for name, value in params.items()}, opt_state

    return linear_in_gradient(update)


def linear_in_gradient(update: U) -> U:
    """Mark an update whose derivatives hang on no value of the gradient: plain descent.

    The engine `mixed` then keeps half as much of a trajectory.
    """
    update.linear_in_gradient = True  # type: ignore[attr-defined]
    return update
