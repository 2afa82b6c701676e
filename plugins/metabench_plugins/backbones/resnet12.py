"""ResNet-12, the usual large backbone of few-shot papers, as MetaOptNet has it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec, channels_last
from metabench_plugins.backbones.dropblock import DropBlock
from metabench_plugins.backbones.images import (
    Pooling,
    halved_by_pooling,
    image_shape,
    pool_map,
    pooled_dim,
)
from metabench_plugins.backbones.weights import WithWeights, load_file

BLOCKS = 4
SLOPE = 0.1
"""Of the leaky ReLU below zero."""

Channels = Annotated[int, Field(ge=1)]


class ResNet12Hyperparameters(WithWeights):
    widths: Annotated[
        tuple[Channels, Channels, Channels, Channels],
        Field(description="channels of the four blocks; the narrower one has 64, 128, 256, 512"),
    ] = (64, 160, 320, 640)
    pooling: Annotated[
        Pooling, Field(description="the last map as features: all of it, or its spatial mean")
    ] = "flatten"
    drop_rate: Annotated[
        float, Field(ge=0, lt=1, description="of dropout (blocks 1, 2) and DropBlock (3, 4)")
    ] = 0.1
    block_size: Annotated[int, Field(ge=1, description="side of DropBlock's squares")] = 5


class ResidualBlock(nn.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 shortcut, then max-pooling by 2 and dropout."""

    def __init__(self, channels: int, width: int, dropout: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(width)
        self.dropout = dropout
        for conv in (self.conv1, self.conv2, self.conv3, self.shortcut):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, maps: Tensor) -> Tensor:
        out = F.leaky_relu(self.norm1(self.conv1(maps)), SLOPE)
        out = F.leaky_relu(self.norm2(self.conv2(out)), SLOPE)
        out = self.norm3(self.conv3(out)) + self.shortcut_norm(self.shortcut(maps))
        # Pooling before the (increasing) leaky ReLU gives the same values with less work.
        out = F.leaky_relu(F.max_pool2d(out, 2), SLOPE)
        dropped: Tensor = self.dropout(out)
        return dropped


class ResNet12(Backbone):
    """Four residual blocks of three convolutions, with DropBlock in the last two.

    Lee et al., "Meta-Learning with Differentiable Convex Optimization", 2019, section 4.1 and
    the authors' code: 64, 160, 320 and 640 channels, leaky ReLU, max-pooling after each block, the
    last map (640 x 5 x 5 of an 84 x 84 image) flattened, ordinary dropout in the first two blocks
    and DropBlock in the last two. The initialisation is theirs (He's normal one over the fan out).

    Differs: the authors raise the rate of DropBlock linearly over the first 40,000 calls of the
    network (their first 20 epochs); here it is constant, because how often a network is called in
    a meta-step depends on the algorithm and on how the engine batches episodes. Squares are cut to
    maps smaller than them (from 28 x 28 images the last two maps are 3 x 3 and 1 x 1).
    """

    name = "resnet12"
    reference = "Lee et al. 2019, arXiv:1904.03758"
    summary = "The 12-layer residual network of MetaOptNet, with DropBlock."
    hyperparameters: ClassVar[type[Hyperparameters]] = ResNet12Hyperparameters

    feature_map: tuple[int, int, int]

    def __init__(self, item: ItemSpec, hp: ResNet12Hyperparameters) -> None:
        super().__init__(item, hp)
        channels, height, width = image_shape(item, "backbone resnet12")
        size = halved_by_pooling(height, width, BLOCKS, "backbone resnet12")
        self.pooling = hp.pooling
        self.feature_map = (hp.widths[-1], *size)
        self.feature_dim = pooled_dim(self.feature_map, hp.pooling)
        dropouts = [
            nn.Dropout(hp.drop_rate),
            nn.Dropout(hp.drop_rate),
            DropBlock(hp.drop_rate, hp.block_size),
            DropBlock(hp.drop_rate, hp.block_size),
        ]
        inputs = (channels, *hp.widths[:-1])
        self.blocks = nn.Sequential(*map(ResidualBlock, inputs, hp.widths, dropouts))
        load_file(self, hp.weights)

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, widths[3], H // 16, W // 16) maps."""
        maps: Tensor = self.blocks(channels_last(data))
        return maps

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, D) features."""
        return pool_map(self.forward_map(data), self.pooling)
