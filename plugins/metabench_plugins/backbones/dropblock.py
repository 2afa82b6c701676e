"""DropBlock: dropout of whole squares of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropBlock(nn.Module):
    """Sets random squares of each channel to zero while training; does nothing otherwise.

    Ghiasi et al., "DropBlock: A regularization method for convolutional networks", 2018,
    https://arxiv.org/abs/1810.12890, algorithm 1, with each channel's squares its own. A square
    larger than the map is cut to the map's shorter side (MetaOptNet's code fails there). What is
    left is scaled up by the share that was kept in the batch, as in the paper. Random numbers come
    from PyTorch's global generator; under `torch.vmap` ask for `randomness="different"`.

    Args:
        drop_rate: about the share of values that is dropped.
        block_size: side of a square.
    """

    def __init__(self, drop_rate: float, block_size: int) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.block_size = block_size

    def forward(self, maps: Tensor) -> Tensor:
        """(n, C, H, W) maps to maps of the same shape."""
        if not self.training or self.drop_rate == 0.0:
            return maps
        height, width = maps.shape[2:]
        block = min(self.block_size, height, width)
        corners_shape = (*maps.shape[:2], height - block + 1, width - block + 1)
        rate = corner_rate(self.drop_rate, block, height, width)
        corners = torch.bernoulli(maps.detach().new_full(corners_shape, rate))
        keep = keep_mask(corners, block)
        # Everything can be dropped where maps are tiny; 0 / 1 then, not 0 / 0.
        return maps * keep * (keep.numel() / keep.sum().clamp(min=1.0))

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate}, block_size={self.block_size}"


def corner_rate(drop_rate: float, block: int, height: int, width: int) -> float:
    """Gamma, equation 1: how often a square starts at a place where it fits into the map.

    Squares may overlap, so that a little less than `drop_rate` of the values is dropped.
    """
    places = (height - block + 1) * (width - block + 1)
    return drop_rate / block**2 * (height * width) / places


def keep_mask(corners: Tensor, block: int) -> Tensor:
    """0 in every square whose upper left corner is 1 in `corners`, 1 elsewhere.

    Args:
        corners: (n, C, H - block + 1, W - block + 1) of zeros and ones.
        block: side of a square.

    Returns:
        (n, C, H, W).
    """
    padded = F.pad(corners, (block - 1,) * 4)
    return 1.0 - F.max_pool2d(padded, block, stride=1)
