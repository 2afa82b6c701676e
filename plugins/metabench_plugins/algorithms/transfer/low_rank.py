"""Low-rank adapters: what is learnt of a weight is a product of two thin matrices."""

from __future__ import annotations

from torch import Tensor, nn

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that multiply by a weight (out, in, ...)."""
DOWN, UP = ".low-rank-down", ".low-rank-up"
"""Behind a weight's name: the names of its A and B."""


def dense_weights(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights (out, in, ...) of all convolutions and linear layers, by name."""
    return {
        f"{prefix}{name}.weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, DENSE)
    }


def factor_sizes(weight: Tensor, rank: int) -> tuple[int, int, int]:
    """(out, r, in) for a weight (out, in, ...): r is the rank, or as much as fits."""
    outputs, inputs = weight.shape[0], weight[0].numel()
    return outputs, min(rank, outputs, inputs), inputs


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * B A (Hu et al. 2021, arXiv:2106.09685, equation 3), in the shape of W.

    Args:
        weight: W, (out, in, ...); of a convolution the channels and the window are one dimension.
        down: A, (r, in).
        up: B, (out, r).
        scale: alpha / r in the paper.
    """
    return weight + scale * (up @ down).reshape(weight.shape)
