"""What the convolutional backbones share: the images they take, and how maps become features."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from metabench import ItemSpec

Pooling = Literal["flatten", "mean"]


def image_shape(item: ItemSpec, taker: str) -> tuple[int, int, int]:
    """The (C, H, W) of an image item.

    Raises:
        ValueError: items are not images of three dimensions; `taker` stands in the text.
    """
    if item.kind != "image" or len(item.shape) != 3:
        shape = " x ".join(map(str, item.shape)) or "no dimensions"
        raise ValueError(
            f"{taker} takes images (channels, height, width), not items of kind {item.kind!r} "
            f"with shape {shape}; the backbone 'mlp' takes any"
        )
    channels, height, width = item.shape
    return channels, height, width


def halved_by_pooling(height: int, width: int, times: int, taker: str) -> tuple[int, int]:
    """The size of a map after that many max-poolings by 2, each of which rounds down.

    Raises:
        ValueError: nothing would be left of it; `taker` stands in the text.
    """
    least = 2**times
    if min(height, width) < least:
        raise ValueError(
            f"{taker} halves an image {times} times and so needs {least} x {least} pixels or more, "
            f"not {height} x {width}"
        )
    return height // least, width // least


def pooled_dim(feature_map: tuple[int, int, int], pooling: Pooling) -> int:
    """The D of `pool_map`'s features."""
    channels, height, width = feature_map
    return channels if pooling == "mean" else channels * height * width


def pool_map(maps: Tensor, pooling: Pooling) -> Tensor:
    """Feature maps (n, C, H, W) to features: (n, C) by the mean, (n, C * H * W) flattened."""
    return maps.mean(dim=(2, 3)) if pooling == "mean" else maps.flatten(1)
