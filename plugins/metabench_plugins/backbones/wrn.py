"""The wide residual network WRN-28-10 of the transfer papers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec, channels_last
from metabench_plugins.backbones.images import image_shape
from metabench_plugins.backbones.weights import WithWeights, load_file

STAGES = 3
BASE = 16


class WRNHyperparameters(WithWeights):
    blocks: Annotated[
        int, Field(ge=1, le=64, description="blocks of two convolutions in each of three stages")
    ] = 4
    widen: Annotated[int, Field(ge=1, le=64, description="factor of the widths 16, 32, 64")] = 10
    drop_rate: Annotated[
        float, Field(ge=0, lt=1, description="of dropout between the convolutions of a block")
    ] = 0.0


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions, beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.norm1(maps))
        # Where the width changes, the shortcut begins behind the first activation.
        beside = maps if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return out + beside


class WRN(Backbone):
    """Wide residual network: 28 layers (6 * blocks + 4), 10 times as wide.

    Zagoruyko and Komodakis, "Wide Residual Networks", 2016, https://arxiv.org/abs/1605.07146, table
    1: a convolution of 16 channels, three stages of four blocks of 160, 320 and 640 channels, the
    second and third of which halve the map, batch norm, ReLU, and the spatial mean. Few-shot work
    took it over as it is: Rusu et al., "LEO", 2019, arXiv:1807.05960, and Mangla et al., "Charting
    the Right Manifold" (S2M2), 2020, arXiv:1907.12087. Weights are He's normal ones over the fan
    out, as in the latter's code.

    Differs: LEO has dropout and an image of 80 x 80; here `drop_rate` is 0, as in S2M2, and images
    are taken as they are, of any size. It is large: 5 billion multiplications for a 32 x 32 image.
    """

    name = "wrn-28-10"
    reference = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
    summary = "A wide residual network of 28 layers, the usual one of few-shot transfer."
    hyperparameters: ClassVar[type[Hyperparameters]] = WRNHyperparameters
    checked_with = MappingProxyType({"blocks": 2, "widen": 1})

    feature_map: tuple[int, int, int]

    def __init__(self, item: ItemSpec, hp: WRNHyperparameters) -> None:
        super().__init__(item, hp)
        channels, height, width = image_shape(item, "backbone wrn-28-10")
        self.stem = nn.Conv2d(channels, BASE, 3, padding=1, bias=False)
        blocks, inputs = [], BASE
        for stage in range(STAGES):
            outputs = BASE * 2**stage * hp.widen
            for number in range(hp.blocks):
                stride = 2 if stage and not number else 1
                blocks.append(WideBlock(inputs, outputs, stride, hp.drop_rate))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.feature_map = (inputs, -(-height // 4), -(-width // 4))
        self.feature_dim = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        load_file(self, hp.weights)

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, 64 * widen, H / 4, W / 4) maps, rounded up."""
        return F.relu(self.norm(self.blocks(self.stem(channels_last(data)))))

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, 64 * widen) features."""
        return self.forward_map(data).mean(dim=(2, 3))
