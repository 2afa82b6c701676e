"""Batch norm by the batch's own moments, whose second derivative takes a few passes.

The values and the first derivative are PyTorch's own. Its second derivative is made of some forty
passes over the map for each layer and step, a seventh of the time of second-order MAML on conv4;
here it is written out in ten. With N values a channel, x^ = (x - mean) s, s = (var + eps)^(-1/2),
and <.> the mean over a channel, the first derivative is

    dx = gamma s (g - <g> - x^ <g x^>),   dgamma = sum of g x^,   dbeta = sum of g          (1)

for the cotangent g (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3). With cotangents v, w, u
of these three, and T = sum of v g - N <v><g> - N <v x^><g x^>, differentiating (1) gives

    for g:      gamma s (v - <v> - x^ <v x^>) + w x^ + u                                    (2)
    for gamma:  s T                                                                         (3)
    for x:      s (c - <c> - x^ <c x^>) - gamma T s^2 x^ / N,
                c = -gamma s (v <g x^> + g <v x^>) + w g                                    (4)

where the first term of (2) is (1) again, of v instead of g.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

native = torch.ops.aten.native_batch_norm.default
native_backward = torch.ops.aten.native_batch_norm_backward.default


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.batch_norm` in training mode, of (n, C, ...); can be differentiated twice, not thrice.

    Not for use inside a transform of `torch.func`, nor on CUDA, where PyTorch has other kernels.
    """
    out: Tensor = _Normalise.apply(x, weight, bias, eps)
    return out


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, scale = native(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight)
        ctx.moments, ctx.eps = (mean, scale), eps
        found: Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return *_Slope.apply(g, x, weight, *ctx.moments, ctx.eps), None


class _Slope(torch.autograd.Function):
    """(1), and its own derivative (2) to (4)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> Any:
        found = native_backward(
            g, x, weight, None, None, mean, scale, True, eps, [True, True, True]
        )
        ctx.save_for_backward(g, x, weight)
        # Detached: an output that its own node holds would live until the next garbage collection.
        ctx.rest = (mean, scale, eps, found[1].detach(), found[2].detach())
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor | None, w: Tensor | None, u: Tensor | None) -> Any:
        g, x, gamma = ctx.saved_tensors
        mean, s, eps, sum_gx, sum_g = ctx.rest
        count = x.numel() // x.shape[1]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        v = torch.zeros_like(x) if v is None else v
        w = torch.zeros_like(gamma) if w is None else w
        to_g, sum_vx, sum_v = native_backward(
            v, x, gamma, None, None, mean, s, True, eps, [True, True, True]
        )
        sum_vg = (v * g).sum([0, *range(2, x.ndim)])
        total = sum_vg - (sum_v * sum_g + sum_vx * sum_gx) / count  # T
        # (2): x^ w + u, as a multiple of x and a constant.
        slope = s * w
        constant = -mean * slope if u is None else u - mean * slope
        to_g = to_g.addcmul(x, slope.view(shape)).add_(constant.view(shape))
        # (4): c is a multiple of v and one of g; so the whole is one of v, g, x and 1.
        of_v = -gamma * s * sum_gx / count
        of_g = w - gamma * s * sum_vx / count
        mean_c = (of_v * sum_v + of_g * sum_g) / count
        mean_cx = (of_v * sum_vx + of_g * sum_gx) / count
        of_x = -s * s * (mean_cx + gamma * s * total / count)
        constant = -s * mean_c - mean * of_x
        to_x = (v * (s * of_v).view(shape)).addcmul_(g, (s * of_g).view(shape))
        to_x = to_x.addcmul_(x, of_x.view(shape)).add_(constant.view(shape))
        return to_g, to_x, s * total, None, None, None
