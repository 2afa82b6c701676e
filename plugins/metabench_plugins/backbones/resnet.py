"""ResNet-10 and ResNet-18, with a first layer for large images and one for small ones."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec, channels_last
from metabench_plugins.backbones.images import image_shape
from metabench_plugins.backbones.weights import WithWeights, load_file

STAGES = 4
SMALL = 64
"""Pixels a side; below, `stem = "auto"` halves nothing before the first stage."""
HEAD = "fc."
"""Before the names of the classifier's tensors in a file of torchvision's weights."""
Stem = Literal["auto", "large", "small"]


class ResNetHyperparameters(WithWeights):
    width: Annotated[
        int, Field(ge=1, le=1024, description="channels of the first stage; each next has twice")
    ] = 64
    stem: Annotated[
        Stem,
        Field(
            description="first layer: large: 7 x 7 by strides of 2, then max-pooling; small: 3 x 3,"
            f" which halves nothing; auto: small under {SMALL} pixels a side"
        ),
    ] = "auto"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, maps: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        beside = maps if self.downsample is None else self.downsample(maps)
        return F.relu(out + beside)


class ResNet18(Backbone):
    """Four stages of two residual blocks of two convolutions, and the spatial mean.

    He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.1, with the shortcuts
    that it calls B; `stem = "large"` is torchvision's `resnet18` without its head, layer by layer,
    and its weights fit by name. Weights are He's normal ones over the fan out.

    That first layer is made for images of 224 x 224: of one of 84 x 84 it leaves a map of 3 x 3, of
    one of 28 x 28 a single pixel whose neighbours were lost at once. `stem = "small"` is the one
    that section 4.2 has for images of 32 x 32, one 3 x 3 convolution of stride 1: 28 x 28 becomes
    4 x 4.
    """

    name = "resnet18"
    reference = "He et al. 2016, arXiv:1512.03385"
    summary = "Residual network of 18 layers, for images of any size."
    hyperparameters: ClassVar[type[Hyperparameters]] = ResNetHyperparameters
    checked_with = MappingProxyType({"width": 8})
    blocks: ClassVar[int] = 2
    """In each stage."""

    feature_map: tuple[int, int, int]

    def __init__(self, item: ItemSpec, hp: ResNetHyperparameters) -> None:
        super().__init__(item, hp)
        channels, height, width = image_shape(item, f"backbone {self.name}")
        self.large = hp.stem == "large" or (hp.stem == "auto" and min(height, width) >= SMALL)
        side, stride = (7, 2) if self.large else (3, 1)
        self.conv1 = nn.Conv2d(channels, hp.width, side, stride, padding=side // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(hp.width)
        inputs = hp.width
        for stage in range(STAGES):
            outputs = hp.width * 2**stage
            blocks = []
            for number in range(self.blocks):
                blocks.append(BasicBlock(inputs, outputs, stride=2 if stage and not number else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        halved = 2 ** (STAGES - 1 + (2 if self.large else 0))
        self.feature_map = (inputs, -(-height // halved), -(-width // halved))
        self.feature_dim = inputs
        load_file(self, hp.weights, leave_out=[HEAD])

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, 8 * width, H', W') maps."""
        maps = F.relu(self.bn1(self.conv1(channels_last(data))))
        if self.large:
            maps = F.max_pool2d(maps, 3, stride=2, padding=1)
        for stage in range(STAGES):
            maps = self.get_submodule(f"layer{stage + 1}")(maps)
        return maps

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, 8 * width) features."""
        return self.forward_map(data).mean(dim=(2, 3))


class ResNet10(ResNet18):
    """ResNet-18 with one block in each stage.

    Chen et al., "A Closer Look at Few-shot Classification", 2019, section 4.1 and the authors'
    code, whose blocks and initial weights are those of ResNet-18 here.

    Differs: they enlarge every image to 224 x 224, which costs seven times what 84 x 84 do; here
    images are taken as they are, with the small first layer where they are small (`stem`).
    """

    name = "resnet10"
    reference = "Chen et al. 2019, arXiv:1904.04232"
    summary = "Residual network of 10 layers, of the closer look at few-shot classification."
    blocks: ClassVar[int] = 1
