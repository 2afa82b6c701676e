"""Adam as a pure function, for inner loops that `unroll` takes.

PyTorch's own changes parameters in place, of which each task of a batch has its own. Reptile has
another: its moments outlive the task, so they are buffers of the algorithm, of all weights in one
vector, and the number of steps is a tensor; here it is the inner loop's `t`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """Moving averages of the gradients and of their squares, by the parameters' names."""

    first: Tensors
    second: Tensors


def no_moments(params: Tensors) -> Moments:
    """What Adam remembers before its first step."""
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    return Moments(zeros, dict(zeros))


def adam(lr: float) -> Callable[[Tensors, Tensors, Any, int], tuple[Tensors, Moments]]:
    """Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1, as an `update` for `unroll`."""

    def update(
        params: Tensors, grads: Tensors, opt_state: Moments, t: int
    ) -> tuple[Tensors, Moments]:
        size, root = lr / (1 - BETA1 ** (t + 1)), (1 - BETA2 ** (t + 1)) ** 0.5
        first = {name: g.lerp(opt_state.first[name], BETA1) for name, g in grads.items()}
        second = {name: g.square().lerp(opt_state.second[name], BETA2) for name, g in grads.items()}
        moved = {
            name: value.addcdiv(first[name], second[name].sqrt() / root + EPSILON, value=-size)
            for name, value in params.items()
        }
        return moved, Moments(first, second)

    return update
