"""One inner step's gradient, compiled: once for a shape, for all steps, tasks and cells."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

Tensors = dict[str, Tensor]
MOST_KINDS = 256
"""Kinds of steps (networks, shapes, norm modes) that one process may compile. PyTorch's own limit
of 8 would make a worker's next cell fail."""

Loss = Callable[[Tensors, Tensors, Any, int], tuple[Tensor, Tensors]]


def compiled_gradient(
    loss: Loss, point: Tensors, fixed: Tensors, buffers: Tensors, batch: Any, t: int
) -> tuple[Tensors, Tensors]:
    """The gradient of the loss at a point, and the buffers after the call.

    The gradient is a part of what is compiled, so an outer gradient goes back through compiled
    code once, not twice, which the compiler could not do.
    """
    result: tuple[Tensors, Tensors] = _compiled()(
        loss, _plain(point), _plain(fixed), buffers, batch, t
    )
    return result


def _plain(tensors: Tensors) -> Tensors:
    """The same without the type of a parameter, which later steps don't have: no second kind."""
    return {
        name: value.view_as(value) if isinstance(value, nn.Parameter) else value
        for name, value in tensors.items()
    }


def _gradient(
    loss: Loss, point: Tensors, fixed: Tensors, buffers: Tensors, batch: Any, t: int
) -> tuple[Tensors, Tensors]:
    def objective(here: Tensors) -> tuple[Tensor, Tensors]:
        return loss({**fixed, **here}, buffers, batch, t)

    found: tuple[Tensors, Tensors] = grad(objective, has_aux=True)(point)
    return found


@functools.cache
def _compiled() -> Callable[..., tuple[Tensors, Tensors]]:
    # Importing the compiler takes seconds: not before it is asked for.
    made: Callable[..., tuple[Tensors, Tensors]] = torch.compile(  # type: ignore[call-overload]
        _gradient, fullgraph=True, dynamic=False, recompile_limit=MOST_KINDS
    )
    return made
