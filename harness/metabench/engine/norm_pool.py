"""Batch norm and max-pooling in one, pooled first: most of the work on a quarter of the values.

With gamma > 0 batch norm y = gamma s (x - mean) + beta is increasing, so the maxima of y are where
those of x are, at places P. Only x [P] has to be normalised then, by the moments of all of x; and
the cotangent g of y, which `normalise.py` starts from, is that of the output G at P and zero
elsewhere. So the sums over g in its equations (1) to (4) are sums over G, and its other terms, with
x^ = (x - mean) s, N values a channel, <.> the mean over all of these, v, w, u the cotangents of dx,
dgamma and dbeta, and T = sum of v[P] G - N <v><g> - N <v x^><g x^>, are

    dx = gamma s (G at P - <g> - x^ <g x^>),  dgamma = sum of G x^[P],  dbeta = sum of G    (1)
    for G:      gamma s (v[P] - <v> - x^[P] <v x^>) + w x^[P] + u                           (2)
    for gamma:  s T                                                                         (3)
    for x:      s (c - <c> - x^ <c x^>) - gamma T s^2 x^ / N,
                c = -gamma s (v <g x^> + (G at P) <v x^>) + w (G at P)                      (4)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

moments = torch.ops.aten.batch_norm_update_stats.default
native_backward = torch.ops.aten.native_batch_norm_backward.default


def normalised_and_pooled(x: Tensor, weight: Tensor, bias: Tensor, eps: float, size: int) -> Tensor:
    """`F.max_pool2d(F.batch_norm(x, ...), size)` in training mode; derived twice, not thrice.

    Not for use inside a transform of `torch.func`, nor on CUDA, where PyTorch has other kernels.

    Args:
        x: (n, C, H, W).
        weight: (C,), all positive, or it is something else.
        bias: (C,).
        eps: added to the variances.
        size: of the windows, which don't overlap.
    """
    out: Tensor = _NormPool.apply(x, weight, bias, eps, size)
    return out


class _NormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, size: int) -> Tensor:
        mean, variance = moments(x, None, None, 0.0)
        pooled, places = F.max_pool2d_with_indices(x, (size, size))
        scale = (variance + eps).rsqrt()
        slope = weight * scale
        ctx.save_for_backward(x, weight)
        ctx.rest = (pooled, places, mean, scale, eps)
        return torch.addcmul(_each(bias - mean * slope), pooled, _each(slope))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return *_Slope.apply(grad, x, weight, *ctx.rest), None, None


class _Slope(torch.autograd.Function):
    """(1), and its own derivative (2) to (4)."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        pooled: Tensor,
        places: Tensor,
        mean: Tensor,
        s: Tensor,
        eps: float,
    ) -> Any:
        sum_gx, sum_g = _sums(grad, pooled, weight, mean, s, eps)
        count, slope = x.numel() // x.shape[1], weight * s
        of_x = -slope * s * sum_gx / count
        constant = -slope * sum_g / count - of_x * mean
        to_x = torch.addcmul(_each(constant), x, _each(of_x))
        to_x = _add_at(to_x, grad * _each(slope), places)
        ctx.save_for_backward(grad, x, weight)
        # Detached: an output that its own node holds would live until the next garbage collection.
        ctx.rest = (pooled, places, mean, s, eps, sum_gx.detach(), sum_g.detach())
        ctx.set_materialize_grads(False)
        return to_x, sum_gx, sum_g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor | None, w: Tensor | None, u: Tensor | None) -> Any:
        g, x, gamma = ctx.saved_tensors
        pooled, places, mean, s, eps, sum_gx, sum_g = ctx.rest
        count, slope = x.numel() // x.shape[1], gamma * s
        v = torch.zeros_like(x) if v is None else v
        w = torch.zeros_like(gamma) if w is None else w
        sum_vx, sum_v = _sums(v, x, gamma, mean, s, eps)
        v_at = _at(v, places)
        total = (v_at * g).sum((0, 2, 3)) - (sum_v * sum_g + sum_vx * sum_gx) / count  # T
        # (2): v[P], x^[P] and 1, each times something of its channel.
        of_x = s * (w - slope * sum_vx / count)
        constant = -slope * sum_v / count - mean * of_x
        constant = constant if u is None else constant + u
        to_g = (v_at * _each(slope)).addcmul_(pooled, _each(of_x)).add_(_each(constant))
        # (4): c is a multiple of v and one of g; so the whole is one of v, g, x and 1.
        of_v = -slope * sum_gx / count
        of_g = w - slope * sum_vx / count
        mean_c = (of_v * sum_v + of_g * sum_g) / count
        mean_cx = (of_v * sum_vx + of_g * sum_gx) / count
        of_x = -s * s * (mean_cx + slope * total / count)
        constant = -s * mean_c - mean * of_x
        to_x = (v * _each(s * of_v)).addcmul_(x, _each(of_x)).add_(_each(constant))
        to_x = _add_at(to_x, g * _each(s * of_g), places)
        return to_g, to_x, s * total, *[None] * 5


def _each(of_channel: Tensor) -> Tensor:
    return of_channel.view(1, -1, 1, 1)


def _sums(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(C,) the sums of g (x - mean) s and of g, over all but the channels."""
    only_sums = [False, True, True]
    _, of_gx, of_g = native_backward(g, x, weight, None, None, mean, s, True, eps, only_sums)
    return of_gx, of_g


def _add_at(maps: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """`maps` (n, C, H, W) with `values` (n, C, h, w) added at places, numbers in H W.

    In place where they lie in one of the two usual orders, of which `_flat` makes a view.
    """
    if not (maps.is_contiguous() or maps.is_contiguous(memory_format=torch.channels_last)):
        maps = maps.contiguous()
    flat, dim = _flat(maps, maps)
    flat.scatter_add_(dim, _flat(places, maps)[0], _flat(values, maps)[0])
    return maps


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """(n, C, h, w) what stands at places of `maps` (n, C, H, W)."""
    flat, dim = _flat(maps, maps)
    found = flat.gather(dim, _flat(places, maps)[0])
    if dim == 1:
        images, channels, *shape = places.shape
        return found.view(images, *shape, channels).permute(0, 3, 1, 2)
    return found.view(places.shape)


def _flat(maps: Tensor, like: Tensor) -> tuple[Tensor, int]:
    """The maps with their places in one dimension, and which; in the memory order of `like`.

    A view of `like` itself, which lies channels last or contiguous; perhaps a copy of another.
    """
    if like.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).flatten(1, 2), 1
    return maps.flatten(2), 2
