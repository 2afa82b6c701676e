"""What fine-tuning disturbs its support set with: images moved and mirrored, and dropout."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(images: Tensor, draws: Tensor, shift: int, flip: bool) -> Tensor:
    """Images moved by up to `shift` pixels each way, and mirrored left to right every other time.

    What comes in at an edge is the edge repeated, so that nothing is assumed of the background.

    Args:
        images: (n, C, H, W).
        draws: (n, 3) uniform in [0, 1): down, right, mirrored.
        shift: pixels.
        flip: whether to mirror.
    """
    n, channels, height, width = images.shape
    offsets = (draws[:, :2] * (2 * shift + 1)).floor().long() - shift  # (n, 2), -shift to shift
    rows = torch.arange(height, device=images.device) + offsets[:, :1]  # (n, H)
    columns = torch.arange(width, device=images.device) + offsets[:, 1:]  # (n, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, width - 1 - columns, columns)
    whole = (n, channels, height, width)
    shifted = images.gather(2, rows[:, None, :, None].expand(whole))
    return shifted.gather(3, columns[:, None, None, :].expand(whole))


def dropout_mask(of_items: Tensor, of_features: Tensor, rate: float) -> Tensor:
    """(n, D) 0 with probability `rate`, else 1 / (1 - rate), from n + D draws.

    The sum of two uniform draws, modulo 1, is uniform, and two such sums that share one are
    independent: any two entries of the mask are, as in dropout, at a fraction of its draws.

    Args:
        of_items: (n,) uniform in [0, 1).
        of_features: (D,) the same.
    """
    # The context's generator draws for all episodes at once, so not inside the inner loop of one:
    # all steps' draws are made before it, and n x D for each would be many times the features.
    uniform = (of_items.unsqueeze(1) + of_features).remainder(1.0)
    return (uniform >= rate).to(uniform.dtype) / (1 - rate)
