"""The models that task-mapping predicts, and their solutions: a linear head, a small network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import MetabenchError

MOST_STEPS = 100
"""Of Newton's method; from zero it takes about ten."""
MOST_HALVINGS = 30

Map = Callable[[Tensor], Tensor]


def with_one(features: Tensor) -> Tensor:
    """(B, n, D) followed by a 1, which a bias is multiplied with."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def linear(weights: Tensor, features: Tensor) -> Tensor:
    """(B, n, N) values of features (B, n, D) under weights (B, N, D + 1), the bias last."""
    return torch.baddbmm(weights[..., -1].unsqueeze(1), features, weights[..., :-1].mT)


def head_optimum(features: Tensor, member: Tensor, decay: float) -> Tensor:
    """The optimum of softmax regression, B of them at once, by Newton's method to convergence.

    It minimises the mean cross-entropy of the items plus decay / 2 times the squared norm of
    weights and biases, and is the only one: the penalty makes the objective strongly convex.
    Newton's steps are found by conjugate gradients, and halved while they lead too little downhill.

    Args:
        features: (B, n, D).
        member: (B, n, N) bool, whether an item is of a class; padding is of none.
        decay: a positive number.

    Returns:
        (B, N, D + 1) weights and biases, at which the gradient is eps^(2/3) of what it is at zero;
        they sum to zero over the classes.

    Raises:
        MetabenchError: it isn't reached, as where features are not finite.
    """
    points, wanted = with_one(features), member.to(features.dtype)
    count = wanted.sum((1, 2)).view(-1, 1, 1)
    real, wanted = wanted.sum(-1, keepdim=True) / count, wanted / count

    def objective(head: Tensor) -> Tensor:  # (B,)
        logits = points @ head.mT
        fit = real.squeeze(-1) * logits.logsumexp(-1) - (wanted * logits).sum(-1)
        return fit.sum(-1) + decay / 2 * head.square().sum((1, 2))

    head = features.new_zeros(len(features), member.shape[-1], points.shape[-1])
    eps = torch.finfo(features.dtype).eps
    first, near = torch.zeros(()), torch.zeros(())
    for number in range(MOST_STEPS):
        likely = (points @ head.mT).softmax(-1)
        slope = (likely * real - wanted).mT @ points + decay * head

        def curvature(step: Tensor, likely: Tensor = likely) -> Tensor:
            change = points @ step.mT
            change = likely * (change - (likely * change).sum(-1, keepdim=True))
            return (change * real).mT @ points + decay * step

        length = norm(slope)
        if number == 0:
            # Where there is nothing to be learnt, what is left is rounding of terms that cancel.
            rounding = 4 * eps * norm(wanted.mT @ points)
            first, near = length, torch.maximum(eps ** (2 / 3) * length, rounding)
        if bool((length <= near).all()):
            return head
        if not bool(length.isfinite().all()):
            break
        step = conjugate_gradients(curvature, slope, (length / first).sqrt().clamp(max=0.1))
        head = downhill(objective, head, step, slope)
    raise MetabenchError(
        f"no optimum of a head after {number} steps of Newton's method",
        "features that are not finite have none; else raise the weight decay",
    )


def norm(vectors: Tensor) -> Tensor:
    """(B, 1, 1) lengths of B vectors (B, N, P)."""
    return vectors.square().sum((1, 2), keepdim=True).sqrt()


def conjugate_gradients(matrix: Map, target: Tensor, tolerance: Tensor) -> Tensor:
    """Solve B systems A x = target (B, N, P), to residuals of tolerance times the target's length.

    `matrix` maps x to A x, of symmetric positive definite A.
    """
    # Not imaml's: that one takes a fixed number of steps, one task at a time, and looks for
    # directions without positive curvature. Newton's method here needs a tolerance that it chooses.
    wanted = tolerance * norm(target)
    found, residual = torch.zeros_like(target), target
    direction, squared = residual, residual.square().sum((1, 2), keepdim=True)
    tiny = torch.finfo(target.dtype).tiny
    for _ in range(target[0].numel()):
        if bool((squared.sqrt() <= wanted).all()):
            break
        along = matrix(direction)
        length = squared / (direction * along).sum((1, 2), keepdim=True).clamp(min=tiny)
        found, residual = found + length * direction, residual - length * along
        before, squared = squared, residual.square().sum((1, 2), keepdim=True)
        direction = residual + squared / before.clamp(min=tiny) * direction
    return found


def downhill(objective: Map, point: Tensor, step: Tensor, slope: Tensor) -> Tensor:
    """`point` less a part of `step` that lowers the objective enough (Armijo), for each of B."""
    before, promised = objective(point), (slope * step).sum((1, 2))
    # Near the optimum the objective changes by less than it is rounded by.
    slack = 10 * torch.finfo(point.dtype).eps * before.abs()
    part = torch.ones_like(before)
    for _ in range(MOST_HALVINGS):
        there = point - part.view(-1, 1, 1) * step
        enough = objective(there) <= before - 1e-4 * part * promised + slack
        if bool(enough.all()):
            break
        part = torch.where(enough, part, part / 2)
    return there


def network_values(head: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
    """(B, n, N) logits of a network with one hidden layer: (B, N, h + 1) over (B, h, D + 1)."""
    return linear(head, linear(hidden, features).relu())


def network_solution(
    start: Tensor, features: Tensor, member: Tensor, steps: int, lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """A network after so many steps of gradient descent with momentum .9 on all items at once.

    The hidden layer starts from `start` (h, D + 1), the same for each task, and the layer behind it
    from zero, so that no class is before another.

    Args:
        features, member: as of `head_optimum`.
        decay: of all weights and biases.

    Returns:
        (B, N, h + 1) and (B, h, D + 1) weights, the bias last.
    """
    wanted = member.to(features.dtype)
    wanted = wanted / wanted.sum((1, 2), keepdim=True)
    real = wanted.sum(-1)
    hidden = start.detach().expand(len(features), -1, -1)
    head = features.new_zeros(len(features), member.shape[-1], start.shape[0] + 1)
    weights, speed = [head, hidden], [torch.zeros_like(head), torch.zeros_like(hidden)]
    for _ in range(steps):
        with torch.enable_grad():
            weights = [w.detach().requires_grad_() for w in weights]
            logits = network_values(weights[0], weights[1], features)
            loss = (real * logits.logsumexp(-1)).sum() - (wanted * logits).sum()
            slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            speed = [
                0.9 * v + g + decay * w for v, g, w in zip(speed, slopes, weights, strict=True)
            ]
            weights = [w - lr * v for w, v in zip(weights, speed, strict=True)]
    return weights[0].detach(), weights[1].detach()


def right_share(logits: Tensor, member: Tensor) -> Tensor:
    """(B,) accuracies of logits (B, n, N); items that are of no class don't count."""
    right = F.one_hot(logits.argmax(-1), member.shape[-1]).bool() & member
    return right.sum((1, 2)) / member.sum((1, 2))
