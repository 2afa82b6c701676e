"""resnet12: MetaOptNet's sizes and parameter count, and its arithmetic written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metabench import ItemSpec
from metabench_plugins.backbones.resnet12 import ResNet12, ResNet12Hyperparameters

torch.set_num_threads(1)


def resnet12(*shape: int, **settings: object) -> ResNet12:
    return ResNet12(ItemSpec("image", shape), ResNet12Hyperparameters(**settings))


def hand_count(channels: int, widths: tuple[int, ...]) -> int:
    total = 0
    for before, width in zip((channels, *widths[:-1]), widths, strict=True):
        total += 9 * before * width + 2 * 9 * width * width  # three 3 x 3 convolutions, no bias
        total += before * width  # the shortcut's 1 x 1 convolution
        total += 4 * 2 * width  # scale and shift of four batch norms
    return total


def test_it_has_metaoptnets_parameters() -> None:
    with torch.device("meta"):
        net = resnet12(3, 84, 84)
    blocks = [sum(p.numel() for p in block.parameters()) for block in net.blocks]
    assert blocks == [76_160, 564_480, 2_357_760, 9_425_920]
    assert sum(blocks) == hand_count(3, (64, 160, 320, 640)) == 12_424_320


def test_the_narrower_one_has_the_parameters_that_a_hand_counts() -> None:
    with torch.device("meta"):
        net = resnet12(1, 28, 28, widths=(64, 128, 256, 512))
    count = sum(p.numel() for p in net.parameters())
    assert count == hand_count(1, (64, 128, 256, 512)) == 7_995_520


@pytest.mark.parametrize(
    ("shape", "pooling", "feature_map", "feature_dim"),
    [
        ((3, 84, 84), "flatten", (640, 5, 5), 16_000),
        ((3, 84, 84), "mean", (640, 5, 5), 640),
        ((3, 32, 32), "flatten", (640, 2, 2), 2_560),
        ((1, 28, 28), "flatten", (640, 1, 1), 640),
    ],
)
def test_feature_sizes_are_the_papers(
    shape: tuple[int, ...], pooling: str, feature_map: tuple[int, int, int], feature_dim: int
) -> None:
    with torch.device("meta"):
        net = resnet12(*shape, pooling=pooling)
        assert net.forward_map(torch.empty(2, *shape)).shape == (2, *feature_map)
        assert net(torch.empty(2, *shape)).shape == (2, feature_dim)
    assert net.feature_map == feature_map
    assert net.feature_dim == feature_dim


@settings(max_examples=12, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    pooling=st.sampled_from(["flatten", "mean"]),
    block_size=st.integers(1, 9),
)
def test_stated_sizes_are_the_real_ones(
    channels: int, height: int, width: int, pooling: str, block_size: int
) -> None:
    with torch.device("meta"):
        net = resnet12(
            *(channels, height, width),
            widths=(2, 3, 4, 5),
            pooling=pooling,
            block_size=block_size,
        )
        data = torch.empty(2, channels, height, width)
        assert net.forward_map(data).shape == (2, *net.feature_map)
        assert net(data).shape == (2, net.feature_dim)


def test_values_are_those_of_the_papers_order() -> None:
    """Leaky ReLU, *then* pooling, written out with the same weights and moments."""
    torch.manual_seed(0)
    net = resnet12(3, 34, 29, widths=(3, 4, 5, 6)).double().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)

    def normed(maps: torch.Tensor, norm: torch.nn.BatchNorm2d) -> torch.Tensor:
        return F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    data = torch.randn(4, 3, 34, 29, dtype=torch.float64)
    maps = data
    for b in net.blocks:
        out = F.leaky_relu(normed(F.conv2d(maps, b.conv1.weight, padding=1), b.norm1), 0.1)
        out = F.leaky_relu(normed(F.conv2d(out, b.conv2.weight, padding=1), b.norm2), 0.1)
        out = normed(F.conv2d(out, b.conv3.weight, padding=1), b.norm3)
        out = out + normed(F.conv2d(maps, b.shortcut.weight), b.shortcut_norm)
        maps = F.max_pool2d(F.leaky_relu(out, 0.1), 2)
    assert torch.equal(net(data), maps.flatten(1))


def test_initial_weights_are_hes_over_the_fan_out() -> None:
    torch.manual_seed(0)
    block = resnet12(3, 28, 28, widths=(64, 128, 8, 8)).blocks[1]
    for conv, fan_out in [(block.conv1, 9 * 128), (block.conv3, 9 * 128), (block.shortcut, 128)]:
        assert abs(conv.weight.std() / (2 / fan_out) ** 0.5 - 1) < 0.05


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    torch.manual_seed(0)
    net = resnet12(1, 28, 28, widths=(4, 4, 4, 4), drop_rate=0.3)
    data = torch.rand(6, 1, 28, 28)

    def features(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return net(data)

    net.train()
    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))
    net.eval()
    assert torch.equal(features(1), features(2))


def test_dropout_is_plain_in_the_first_two_blocks_and_of_squares_in_the_last_two() -> None:
    dropouts = [block.dropout for block in resnet12(1, 28, 28, widths=(2, 2, 2, 2)).blocks]
    assert [type(layer).__name__ for layer in dropouts] == ["Dropout"] * 2 + ["DropBlock"] * 2
    assert [dropouts[0].p, dropouts[1].p] == [0.1, 0.1]
    assert [(d.drop_rate, d.block_size) for d in dropouts[2:]] == [(0.1, 5)] * 2


def test_without_dropout_training_mode_is_deterministic() -> None:
    net = resnet12(1, 28, 28, widths=(4, 4, 4, 4), drop_rate=0.0).train()
    data = torch.rand(6, 1, 28, 28)
    assert torch.equal(net(data), net(data))


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resnet12 .* 16 x 16 pixels or more, not 15 x 40"):
        resnet12(1, 15, 40)


@pytest.mark.parametrize("bad", [{"widths": (64, 128, 256)}, {"drop_rate": 1.0}, {"block_size": 0}])
def test_impossible_hyperparameters_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResNet12Hyperparameters(**bad)
