"""resnet10 and resnet18 against torchvision's own networks, and sizes under both first layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as Theirs

from metabench import ItemSpec
from metabench_plugins.backbones.resnet import ResNet10, ResNet18, ResNetHyperparameters

torch.set_num_threads(1)
BLOCKS = {ResNet10: [1, 1, 1, 1], ResNet18: [2, 2, 2, 2]}


def resnet(cls: type[ResNet18], *shape: int, **settings: object) -> ResNet18:
    return cls(ItemSpec("image", shape), ResNetHyperparameters(**settings))


def theirs(cls: type[ResNet18]) -> Theirs:
    torch.manual_seed(0)
    network = Theirs(BasicBlock, BLOCKS[cls])
    for module in network.modules():  # not the moments and scales that every one begins with
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize("cls", BLOCKS)
@pytest.mark.parametrize("training", [True, False])
def test_features_are_torchvisions_with_its_weights(cls: type[ResNet18], training: bool) -> None:
    other, ours = theirs(cls).train(training), resnet(cls, 3, 70, 66).train(training)
    ours.load_state_dict(other.state_dict())  # by name, and all of them
    data = torch.rand(3, 3, 70, 66)
    torch.testing.assert_close(ours(data), other(data))


def test_parameter_counts_are_the_published_ones() -> None:
    head = 512 * 1000 + 1000
    published = ResNet18_Weights.IMAGENET1K_V1.meta["num_params"] - head
    assert count(resnet(ResNet18, 3, 84, 84)) == published == 11_176_512
    # By hand: the first layer; a block without shortcut; three with one, each of twice the width.
    first = 3 * 64 * 49 + 2 * 64
    stages = 2 * 64 * 64 * 9 + 4 * 64
    for width in (128, 256, 512):
        stages += width // 2 * width * 9 + width * width * 9 + width // 2 * width + 6 * width
    assert count(resnet(ResNet10, 3, 84, 84)) == first + stages == 4_905_792


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("shape", "settings", "feature_map"),
    [
        ((3, 224, 224), {}, (64, 7, 7)),
        ((3, 84, 84), {}, (64, 3, 3)),
        ((1, 28, 28), {}, (64, 4, 4)),
        ((1, 28, 28), {"stem": "large"}, (64, 1, 1)),
        ((3, 84, 84), {"stem": "small"}, (64, 11, 11)),
        ((2, 19, 70), {}, (64, 3, 9)),
        ((1, 1, 1), {}, (64, 1, 1)),
    ],
)
def test_sizes(
    shape: tuple[int, ...], settings: dict[str, object], feature_map: tuple[int, ...]
) -> None:
    net = resnet(ResNet10, *shape, width=8, **settings).eval()
    data = torch.rand(2, *shape)
    assert net.feature_map == feature_map
    assert net.forward_map(data).shape == (2, *feature_map)
    torch.testing.assert_close(net(data), net.forward_map(data).mean((2, 3)))


def test_the_small_first_layer_is_one_convolution_of_stride_1() -> None:
    net = resnet(ResNet10, 1, 32, 32, width=4)
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    data = torch.rand(2, 1, 32, 32)
    net.eval()
    first = net.bn1(net.conv1(data)).relu()
    rest = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
    torch.testing.assert_close(net.forward_map(data), rest(first))
