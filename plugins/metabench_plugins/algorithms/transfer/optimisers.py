"""What fine-tuning descends with: momentum or AdamW as pure functions, and rates that fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from metabench_plugins.algorithms.adam import adam, no_moments

Tensors = dict[str, Tensor]
Step = Callable[[Tensors, Tensors, Any, int], tuple[Tensors, Any]]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "linear"]


def scheduled(lr: float, schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step, 0 to `steps` - 1; one that falls would be 0 at `steps`."""
    done = step / steps
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    return lr * (1 - done) if schedule == "linear" else lr


def memory_of(optimizer: Optimizer, params: Tensors) -> Any:
    """What the optimiser remembers before its first step."""
    if optimizer == "adamw":
        return no_moments(params)
    return {name: torch.zeros_like(value) for name, value in params.items()}


def momentum_step(lr: float, momentum: float, decay: float) -> Step:
    """Descent with momentum; weight decay is added to the gradient, as by `torch.optim.SGD`."""

    def update(params: Tensors, grads: Tensors, speed: Any, t: int) -> tuple[Tensors, Any]:
        speed = {n: momentum * speed[n] + grads[n] + decay * p for n, p in params.items()}
        return {n: p - lr * speed[n] for n, p in params.items()}, speed

    return update


def adamw_step(lr: float, decay: float) -> Step:
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), Algorithm 2, as `torch.optim.AdamW`."""

    def update(params: Tensors, grads: Tensors, moments: Any, t: int) -> tuple[Tensors, Any]:
        shorter = {name: (1 - lr * decay) * value for name, value in params.items()}
        return adam(lr)(shorter, grads, moments, t)

    return update
