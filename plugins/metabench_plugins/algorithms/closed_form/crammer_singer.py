"""The multi-class SVM of Crammer and Singer by its dual, many at once, with its derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

SHORT_OF_THE_BOUND = 0.99
"""Of the way to the nearest bound that a step of the interior-point method goes at most."""


def crammer_singer(kernel: Tensor, labels: Tensor, cost: float, steps: int) -> Tensor:
    """The solution of the dual, differentiable with respect to the kernel.

        min over a of  1/2 tr a^T K a - tr Y^T a                                   (1)
        such that      a <= C Y  and  sum over n of a[i, n] = 0 for each item i    (2)

    Koby Crammer, Yoram Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
    Machines", JMLR 2001. Which bounds of (2) hold with equality is found by an interior-point
    method, without derivatives. Where they stay the same, what is left of (1) and (2) is a linear
    system in K: it is solved with derivatives, which by the implicit function theorem are those of
    the solution. Where a bound is about to be met or left, they are those of one side.

    Args:
        kernel: (B, S, S), symmetric and positive definite; float64, because bounds are told by
            numbers close to zero.
        labels: (B, S, N) one-hot; an item of no class gets coefficients of zero if its kernel with
            all others is zero.
        cost: C.
        steps: of the interior-point method. The longer the items, the more it takes until it
            knows which bounds hold: about 15 at length 10, up to 30 at length 1000 (measured for 5
            to 20 ways, C = .1). With too few, the solution is far off.

    Returns:
        (B, S, N) a; the weights of a linear classifier are X^T a.
    """
    of_class = labels.mT  # (B, N, S): from here on a system of S equations a class
    with torch.no_grad():
        free = free_coefficients(kernel, of_class, cost, steps)
    return coefficients(kernel, of_class, cost, free.to(kernel.dtype)).mT


def coefficients(kernel: Tensor, of_class: Tensor, cost: float, free: Tensor) -> Tensor:
    """(B, N, S) minimum of (1) where all that is not free is at its bound.

    The derivative by a free coefficient is zero but for the item's multiplier m of (2):
        (K a)[i, n] - Y[i, n] + m[i] = 0                                           (3)

    Args:
        free: (B, N, S), 1 or 0; at least one class of each item is free.
    """
    bound = cost * of_class * (1 - free)
    inside = free.unsqueeze(-1) * free.unsqueeze(-2)  # (B, N, S, S)
    # An equation of (3) a free coefficient; of those at a bound 1 x = 0, so that shapes are fixed.
    system = inside * kernel.unsqueeze(1) + (1 - free).diag_embed()
    inverse = inside * torch.linalg.inv_ex(system).inverse
    alone = _times(inverse, of_class - bound @ kernel)  # (3) with m = 0
    excess = (alone + bound).sum(1)  # (B, S), of (2)
    multipliers = torch.linalg.solve_ex(inverse.sum(1), excess).result
    return bound + alone - _times(inverse, multipliers.unsqueeze(1))


def free_coefficients(kernel: Tensor, of_class: Tensor, cost: float, steps: int) -> Tensor:
    """(B, N, S) bool: which coefficients of the solution are below their bound.

    Mehrotra's predictor-corrector method, in b = C Y - a, a point of a simplex for each item:
        K b + Y - C K Y - z - m = 0,  sum over n of b[i, n] = C,  b z = 0,  b, z >= 0   (4)
    """
    ways = of_class.shape[1]
    b = torch.full_like(of_class, cost / ways)
    slope = (b - cost * of_class) @ kernel + of_class
    spread = slope - slope.amin(1, keepdim=True)
    z = spread + spread.amax((1, 2), keepdim=True) + 1  # all of (4) holds, but for b z = 0
    for _ in range(steps):
        inverse = torch.linalg.inv_ex(kernel.unsqueeze(1) + (z / b).diag_embed()).inverse
        of_items = torch.linalg.inv_ex(inverse.sum(1)).inverse  # (B, S, S)
        gap = (b * z).mean((1, 2), keepdim=True)
        db, dz = _direction(b, z, inverse, of_items, -b * z)
        length = torch.minimum(_to_bound(b, db), _to_bound(z, dz))
        reached = ((b + length * db) * (z + length * dz)).mean((1, 2), keepdim=True)
        aim = gap * (reached / gap) ** 3 - b * z - db * dz
        db, dz = _direction(b, z, inverse, of_items, aim)
        length = torch.minimum(_to_bound(b, db), _to_bound(z, dz))
        b, z = b + length * db, z + length * dz
    return b > z


def _direction(
    b: Tensor, z: Tensor, inverse: Tensor, of_items: Tensor, aim: Tensor
) -> tuple[Tensor, Tensor]:
    """The step (db, dz) that keeps the linear part of (4), with z db + b dz = aim.

    Args:
        inverse: (B, N, S, S) of K + diag(z / b).
        of_items: (B, S, S) the inverse of its sum over classes.
    """
    alone = _times(inverse, aim / b)
    multipliers = _times(of_items, alone.sum(1)).unsqueeze(1)
    db = alone - _times(inverse, multipliers)
    return db, (aim - z * db) / b


def _to_bound(values: Tensor, step: Tensor) -> Tensor:
    """(B, 1, 1) how much of a step may be gone, 1 at most, such that the values stay positive."""
    ratio = torch.where(step < 0, -values / step, torch.inf)
    return (SHORT_OF_THE_BOUND * ratio.amin((1, 2), keepdim=True)).clamp(max=1)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    product: Tensor = (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
    return product
