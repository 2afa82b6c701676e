"""From one task to a batch of tasks: a function of one is run for each, in turn or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metabench.api.items import PyTree, leading_size, tree_map
from metabench.engine.modes import current_engine


def over_tasks(fn: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """Apply a function of one task to each task of a batch, and stack the results.

    The engine that runs the inner loop decides how: with `vmap` all tasks go at once, so `fn` may
    not branch on values of tensors, nor change one in place that all tasks share.

    Args:
        fn: takes one task's slice of each tree, returns a pytree of tensors.
        trees: pytrees of tensors (B, ...); None is handed on as None.

    Returns:
        the pytree of results with a first dimension B.
    """
    if current_engine() == "vmap":
        return _at_once(fn, trees)
    size = leading_size(list(trees))
    # One unbind a tensor: its backward is one stack, that of B selects B zero-filled copies.
    unbound = tree_map(lambda x: _Unbound(x.unbind(0)), list(trees))

    def one_task(b: int) -> PyTree:
        return fn(*tree_map(lambda leaf: leaf.parts[b], unbound))

    results = [one_task(b) for b in range(size)]
    return tree_map(lambda *parts: torch.stack(parts), results[0], *results[1:])


def inside_transform() -> bool:
    """Whether a transform of `torch.func` is going on, which plain autograd cannot be part of."""
    try:
        torch.empty(0).requires_grad_()
    except RuntimeError:
        return True
    return False


class _Unbound:
    """The slices of a tensor along its first dimension; a leaf for `tree_map`."""

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self.parts = parts


def _at_once(fn: Callable[..., PyTree], trees: tuple[PyTree, ...]) -> PyTree:
    """By `vmap`, which takes no None: it is handed the tensors of the trees, end to end."""
    inputs, shape = flatten(list(trees))
    made: list[PyTree] = []

    def one_task(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, shape_of_result = flatten(fn(*restore(shape, tensors)))
        made[:] = [shape_of_result]
        return tuple(outputs)

    outputs = vmap(one_task, randomness="error")(*inputs)
    return restore(made[0], outputs)


class Slot:
    """The place of a tensor in a pytree that was flattened; a leaf for `tree_map`."""

    def __init__(self, number: int) -> None:
        self.number = number


def flatten(tree: PyTree, *, floating: bool = False) -> tuple[list[Tensor], PyTree]:
    """The tensors of a pytree in order, and the pytree with their places instead.

    Other leaves, such as a count of steps, stay where they are.

    Args:
        floating: only tensors of real numbers, which a gradient may be taken of.
    """
    tensors: list[Tensor] = []

    def keep(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or (floating and not leaf.is_floating_point()):
            return leaf
        tensors.append(leaf)
        return Slot(len(tensors) - 1)

    return tensors, tree_map(keep, tree)


def restore(shape: PyTree, tensors: Sequence[Any]) -> PyTree:
    """The pytree that `flatten` took apart, of other tensors."""
    return tree_map(lambda x: tensors[x.number] if isinstance(x, Slot) else x, shape)
