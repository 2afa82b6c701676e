"""Batch norm whose moments an algorithm can choose, keep and hand on while it adapts.

The four options of adaptation (`BatchNormOption`) are made of the modes of this layer:

- `support`: the support set's moments under the adapted weights normalise support and queries
  (MetaBN in Bronskill et al. 2020, arXiv:2003.03284): `fresh` in the inner loop, `record` once
  afterwards, `stored` for queries. Inductive.
- `support+1`: each query is normalised with the support set and itself (the inductive mode of
  Nichol et al. 2018, arXiv:1803.02999): `fresh` throughout. Inductive.
- `running`: the usual averages over training: `update` in training, `stored` at test. Inductive.
- `batch`: support by its own moments, all queries by theirs (the classic MAML): `fresh`
  throughout. Transductive.

Moments are taken of all rows of a batch, padded ones too; no episode is padded today.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench.engine.lift import inside_transform
from metabench.engine.modes import current_engine
from metabench.engine.norm_pool import normalised_and_pooled
from metabench.engine.normalise import normalised
from metabench.errors import PluginError

Mode = Literal["auto", "fresh", "record", "stored", "update"]


class BatchNorm(nn.Module):
    """Batch norm over all dimensions but the second, for (n, C) or (n, C, ...).

    Modes:
        auto: PyTorch's own behaviour: batch moments and running averages in training mode, the
            running averages otherwise.
        fresh: the moments of this batch; nothing is kept.
        record: as `fresh`, and the moments become the stored ones. The buffers are assigned, not
            changed in place, so `torch.func.functional_call` hands them back and gradients flow.
        stored: the stored moments; gradients flow through them.
        update: as `fresh`, and the stored moments move towards the batch's by `momentum`.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float, momentum: float, affine: bool) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.mode: Mode = "auto"

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "fresh" and current_engine() != "vmap":
            if self._derived_twice_cheaply(x):
                assert self.weight is not None
                assert self.bias is not None
                return normalised(x, self.weight, self.bias, self.eps)
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if self.mode == "stored":
            return self._normalise(x, self.running_mean, self.running_var)
        if self.mode == "auto":
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )
        # Under vmap PyTorch's own has wrong second derivatives (pytorch/functorch#534).
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
        if self.mode == "record":
            self.running_mean, self.running_var = mean, variance
        elif self.mode == "update":
            # PyTorch's running variance is the unbiased one.
            count = x.numel() // x.shape[1]
            unbiased = variance.detach() * (count / max(1, count - 1))
            self.running_mean = torch.lerp(self.running_mean, mean.detach(), self.momentum)
            self.running_var = torch.lerp(self.running_var, unbiased, self.momentum)
        return self._normalise(x, mean, variance)

    def pooled(self, x: Tensor, size: int) -> Tensor:
        """`F.max_pool2d(self(x), size)` for (n, C, H, W), pooled first where that is the same."""
        if self._increases(x):
            if self.mode == "stored" or (self.mode == "auto" and not self.training):
                return self(F.max_pool2d(x, size))  # type: ignore[no-any-return]
            if self.mode == "fresh" and torch.is_grad_enabled():
                assert self.weight is not None
                assert self.bias is not None
                return normalised_and_pooled(x, self.weight, self.bias, self.eps, size)
        return F.max_pool2d(self(x), size)

    def _increases(self, x: Tensor) -> bool:
        """Whether a larger value stays the larger one, where asking costs next to nothing."""
        plain = x.device.type == "cpu" and current_engine() in {"loop", "mixed"}
        if (
            not plain
            or _as_transformed.get()
            or self.weight is None
            or self.weight.dtype != x.dtype
            or inside_transform()
        ):
            return False
        return bool((self.weight > 0).all())

    def _derived_twice_cheaply(self, x: Tensor) -> bool:
        return (
            current_engine() == "loop"
            and x.device.type == "cpu"
            and self.weight is not None
            and torch.is_grad_enabled()
            and not inside_transform()
        )

    def _normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # Not F.batch_norm: its evaluation mode gives no gradient to the moments.
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * scale.view(shape) + shift.view(shape)


@contextmanager
def as_transformed() -> Iterator[None]:
    """The operations of inside a transform of `torch.func`, for what is gone through again there.

    Rounding can make two values equal that are not, and then another one is the maximum.
    """
    token = _as_transformed.set(True)
    try:
        yield
    finally:
        _as_transformed.reset(token)


_as_transformed: ContextVar[bool] = ContextVar("as transformed", default=False)


def norm_and_pool(norm: nn.Module, maps: Tensor, size: int) -> Tensor:
    """`F.max_pool2d(norm(maps), size)`, in less time and memory where `norm` is the engine's.

    Call it in the `forward` of a backbone that max-pools what it has normalised, before an
    activation that increases (ReLU): the three commute.

    Args:
        norm: a batch norm, PyTorch's or the engine's.
        maps: (n, C, H, W).
        size: of the windows, and their distance.
    """
    if isinstance(norm, BatchNorm):
        return norm.pooled(maps, size)
    return F.max_pool2d(norm(maps), size)


class LayerNorm(nn.LayerNorm):
    """PyTorch's layer norm; under vmap, where its second derivatives are wrong, in plain steps."""

    def forward(self, x: Tensor) -> Tensor:
        if current_engine() != "vmap":
            return super().forward(x)
        dims = list(range(x.ndim - len(self.normalized_shape), x.ndim))
        variance, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


def convert(module: nn.Module) -> None:
    """Replace PyTorch's batch and layer norms below `module`, in place, weights kept.

    Ours always keep running averages; a cumulative one (`momentum=None`) becomes one of .1.

    Raises:
        PluginError: a batch norm computes something of its own, which would be lost.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            if type(child).forward is not nn.BatchNorm2d.forward:
                raise PluginError(
                    f"{type(module).__name__}.{name} is a {type(child).__name__}, a batch norm that"
                    " computes something of its own",
                    "use PyTorch's own batch norm, and put behind it what this one adds",
                )
            momentum = 0.1 if child.momentum is None else child.momentum
            layer = BatchNorm(child.num_features, child.eps, momentum, child.affine)
            if child.affine:
                layer.weight, layer.bias = child.weight, child.bias
            if child.running_mean is not None and child.running_var is not None:
                layer.running_mean, layer.running_var = child.running_mean, child.running_var
            layer.train(child.training)
            setattr(module, name, layer)
        elif type(child) is nn.LayerNorm:
            child.__class__ = LayerNorm  # the same tensors under the same names
        else:
            convert(child)


@contextmanager
def norm_mode(module: nn.Module, mode: Mode) -> Iterator[None]:
    """Put every batch norm below `module` into a mode for the duration."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    before = [layer.mode for layer in layers]
    for layer in layers:
        layer.mode = mode
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.mode = old
