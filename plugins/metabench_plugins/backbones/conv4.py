"""The four-block convolutional network of the first few-shot papers, and what six blocks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec, channels_last, norm_and_pool
from metabench_plugins.backbones.images import (
    Pooling,
    halved_by_pooling,
    image_shape,
    pool_map,
    pooled_dim,
)
from metabench_plugins.backbones.weights import WithWeights, load_file

HALVINGS = 4
"""How often an image is halved, by so many blocks at the beginning."""
Downsample = Literal["max-pool", "stride"]
Draw = Callable[[Tensor], object]
"""Fills a weight with random numbers."""


class Conv4Hyperparameters(WithWeights):
    width: Annotated[int, Field(ge=1, le=4096, description="channels of each of the blocks")] = 64
    downsample: Annotated[
        Downsample, Field(description="what halves a map: 2 x 2 max-pooling, or convolving by 2")
    ] = "max-pool"
    pooling: Annotated[
        Pooling, Field(description="the last map as features: all of it, or its spatial mean")
    ] = "flatten"


class ConvBlock(nn.Module):
    """3 x 3 convolution, batch norm, ReLU; halves the map, unless `downsample` is None."""

    def __init__(
        self, channels: int, width: int, downsample: Downsample | None, draw: Draw
    ) -> None:
        super().__init__()
        self.pools = downsample == "max-pool"
        stride = 2 if downsample == "stride" else 1
        self.conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(width)
        draw(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        # The papers pool after the ReLU. ReLU is monotone, so the two commute exactly, and here it
        # sees a quarter of the pixels.
        return F.relu(norm_and_pool(self.norm, maps, 2) if self.pools else self.norm(maps))


class Conv4(Backbone):
    """Four times (3 x 3 convolution, batch norm, ReLU, halving), all of one width.

    Vinyals et al., "Matching Networks for One Shot Learning", 2016, section 4.1.1, and Snell et
    al., "Prototypical Networks for Few-shot Learning", 2017, section 3.1: 64 channels, max-pooling,
    flattened. Finn et al., "Model-Agnostic Meta-Learning", 2017, section 5.2, has strides instead
    of max-pooling on Omniglot, and the spatial mean as features (`downsample = "stride"`,
    `pooling = "mean"`); Nichol et al., "On First-Order Meta-Learning Algorithms", 2018, has strides
    and flattens.

    Weights are drawn from Xavier's uniform distribution and biases are zero, as in the code of MAML
    and Reptile. Behind a batch norm the scale of a weight does not change the output, but a
    gradient step turns it by lr / norm squared, so published inner learning rates mean the same
    only at the same initial scale; metric learners hardly notice.

    Differs: with strides the two papers' TensorFlow pads 28 x 28 at the bottom and right only, this
    pads all around; the sizes are the same (28, 14, 7, 4, 2). MAML's batch norm has no scale.
    """

    name = "conv4"
    reference = "Vinyals et al. 2016, arXiv:1606.04080"
    summary = "Four blocks of 3x3 convolution, batch norm and ReLU; max-pool or stride."
    hyperparameters: ClassVar[type[Hyperparameters]] = Conv4Hyperparameters
    depth: ClassVar[int] = 4
    draw: ClassVar[Draw] = staticmethod(nn.init.xavier_uniform_)

    feature_map: tuple[int, int, int]

    def __init__(self, item: ItemSpec, hp: Conv4Hyperparameters) -> None:
        super().__init__(item, hp)
        taker = f"backbone {self.name}"
        channels, height, width = image_shape(item, taker)
        self.pooling = hp.pooling
        self.feature_map = (hp.width, *_map_size(height, width, hp.downsample, taker))
        self.feature_dim = pooled_dim(self.feature_map, hp.pooling)
        inputs = [channels] + [hp.width] * (self.depth - 1)
        halving = [hp.downsample] * HALVINGS + [None] * (self.depth - HALVINGS)
        self.blocks = nn.Sequential(
            *(
                ConvBlock(c, hp.width, by, type(self).draw)
                for c, by in zip(inputs, halving, strict=True)
            )
        )
        load_file(self, hp.weights)

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, width, H', W') maps."""
        maps: Tensor = self.blocks(channels_last(data))
        return maps

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, D) features."""
        return pool_map(self.forward_map(data), self.pooling)


def _map_size(height: int, width: int, downsample: Downsample, taker: str) -> tuple[int, int]:
    """The last map's size: strides round up, so that any image will do; poolings round down."""
    if downsample == "stride":
        return -(-height // 2**HALVINGS), -(-width // 2**HALVINGS)
    return halved_by_pooling(
        height, width, HALVINGS, f"{taker} with max-pooling (downsample = 'stride' takes any)"
    )
