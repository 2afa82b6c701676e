"""The inner loop: gradient descent on one task as a pure function, and its lifting over a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor

from metabench.api.items import PyTree, leading_size, tree_map

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors, Any, int], tuple[Tensor, Tensors]]
"""`loss(params, buffers, batch, t)` -> (scalar, buffers after the call) at inner step t."""
Update = Callable[[Tensors, Tensors, Any, int], tuple[Tensors, Any]]
"""`update(params, grads, opt_state, t)` -> (params, opt_state), over the adapted parameters."""
Order = Literal[1, 2]


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
    # Nothing of a first-order inner gradient reaches the outer graph, so none of it is recorded.
    fixed = constant if order == 2 else {name: v.detach() for name, v in constant.items()}

    def objective(here: Tensors, state: Tensors, t: int) -> tuple[Tensor, Tensors]:
        return loss({**fixed, **here}, state, batch, t)

    gradient = torch.func.grad(objective, has_aux=True)
    for t in range(steps):
        if order == 2:
            grads, buffers = gradient(adapted, buffers, t)
        else:
            point = {name: value.detach() for name, value in adapted.items()}
            grads, buffers = _first_order(objective, point, buffers, t)
        adapted, opt_state = update(adapted, grads, opt_state, t)
    return {**constant, **adapted}, buffers, opt_state


def _first_order(
    objective: Callable[[Tensors, Tensors, int], tuple[Tensor, Tensors]],
    point: Tensors,
    buffers: Tensors,
    t: int,
) -> tuple[Tensors, Tensors]:
    """The gradient at a point without a graph, and the buffers after the call.

    Plain autograd takes 0.7 of the time of `torch.func.grad` on small networks.
    """
    try:
        leaves = {name: value.requires_grad_() for name, value in point.items()}
    except RuntimeError:  # inside a transform such as vmap, which plain autograd cannot be
        transformed: tuple[Tensors, Tensors] = torch.func.grad(objective, has_aux=True)(
            point, buffers, t
        )
        return transformed
    with torch.enable_grad():
        value, after = objective(leaves, buffers, t)
    found = torch.autograd.grad(
        value, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    grads = dict(zip(leaves, found, strict=True))
    return grads, {name: moment.detach() for name, moment in after.items()}


def sgd(lr: float) -> Update:
    """Plain gradient descent: `params - lr * grads`, no state."""

    def update(params: Tensors, grads: Tensors, opt_state: Any, t: int) -> tuple[Tensors, Any]:
        return {name: value - lr * grads[name] for name, value in params.items()}, opt_state

    return update


def over_tasks(fn: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """Apply a function of one task to each task of a batch, and stack the results.

    Args:
        fn: takes one task's slice of each tree, returns a pytree of tensors.
        trees: pytrees of tensors (B, ...); None is handed on as None.

    Returns:
        the pytree of results with a first dimension B.
    """
    size = leading_size(list(trees))
    # One unbind a tensor: its backward is one stack, that of B selects B zero-filled copies.
    unbound = [_unbound(tree) for tree in trees]
    results = [fn(*(_slice(tree, b) for tree in unbound)) for b in range(size)]
    return tree_map(lambda *parts: torch.stack(parts), results[0], *results[1:])


def _unbound(tree: PyTree) -> PyTree:
    return tree_map(lambda x: _Unbound(x.unbind(0)), tree)


class _Unbound:
    """The slices of a tensor along its first dimension; a leaf for `tree_map`."""

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self.parts = parts


def _slice(tree: PyTree, b: int) -> PyTree:
    return tree_map(lambda leaf: leaf.parts[b], tree)
