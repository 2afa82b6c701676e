"""conv4: its sizes, its parameters counted by hand, its arithmetic against the papers' order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metabench import ItemSpec
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters

torch.set_num_threads(1)


def conv4(*shape: int, **settings: object) -> Conv4:
    return Conv4(ItemSpec("image", shape), Conv4Hyperparameters(**settings))


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_conv4_64_has_the_parameters_that_a_hand_counts() -> None:
    first = 1 * 3 * 3 * 64 + 64  # weights and biases of the first convolution
    later = 3 * (64 * 3 * 3 * 64 + 64)
    norms = 4 * (64 + 64)  # scale and shift
    assert first + later + norms == 111_936
    assert parameter_count(conv4(1, 28, 28)) == 111_936
    assert parameter_count(conv4(1, 28, 28, downsample="stride")) == 111_936


def test_three_channels_and_width_32_have_the_parameters_that_a_hand_counts() -> None:
    expected = (3 * 9 * 32 + 32) + 3 * (32 * 9 * 32 + 32) + 4 * 64
    assert parameter_count(conv4(3, 84, 84, width=32)) == expected == 28_896


@pytest.mark.parametrize(
    ("shape", "options", "feature_map", "feature_dim"),
    [
        # Snell et al. 2017, section 3.1: a 28 x 28 image becomes 64 features.
        ((1, 28, 28), {}, (64, 1, 1), 64),
        # Snell et al. 2017, section 3.2: an 84 x 84 image becomes 1600.
        ((3, 84, 84), {}, (64, 5, 5), 1600),
        # Strides round up: 28, 14, 7, 4, 2, as TensorFlow's SAME padding has it.
        ((1, 28, 28), {"downsample": "stride"}, (64, 2, 2), 256),
        ((1, 28, 28), {"downsample": "stride", "pooling": "mean"}, (64, 2, 2), 64),
        ((2, 37, 50), {"width": 5}, (5, 2, 3), 30),
    ],
)
def test_feature_sizes_are_the_papers(
    shape: tuple[int, ...],
    options: dict[str, object],
    feature_map: tuple[int, int, int],
    feature_dim: int,
) -> None:
    net = conv4(*shape, **options)
    assert net.feature_map == feature_map
    assert net.feature_dim == feature_dim


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    downsample=st.sampled_from(["max-pool", "stride"]),
    pooling=st.sampled_from(["flatten", "mean"]),
)
def test_stated_sizes_are_the_real_ones(
    channels: int, height: int, width: int, downsample: str, pooling: str
) -> None:
    with torch.device("meta"):
        if downsample == "max-pool" and min(height, width) < 16:
            with pytest.raises(ValueError, match=f"16 x 16 pixels or more, not {height} x {width}"):
                conv4(channels, height, width, width=3, downsample=downsample)
            return
        item = ItemSpec("image", (channels, height, width))
        hp = Conv4Hyperparameters(width=3, downsample=downsample, pooling=pooling)
        net = Conv4(item, hp)
        data = torch.empty(2, channels, height, width)
        assert net.forward_map(data).shape == (2, *net.feature_map)
        assert net(data).shape == (2, net.feature_dim)


@pytest.mark.parametrize("downsample", ["max-pool", "stride"])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_the_papers_order(
    downsample: str, training: bool
) -> None:
    """Convolution, batch norm, ReLU, *then* pooling, written out with the same weights."""
    torch.manual_seed(0)
    net = conv4(2, 33, 28, width=4, downsample=downsample).double().train(training)
    for block in net.blocks:
        torch.nn.init.normal_(block.norm.weight)
        torch.nn.init.normal_(block.norm.bias)
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2.0)
    data = torch.randn(6, 2, 33, 28, dtype=torch.float64)

    maps = data
    for block in net.blocks:
        weight, bias, norm = block.conv.weight, block.conv.bias, block.norm
        maps = F.conv2d(maps, weight, bias, stride=2 if downsample == "stride" else 1, padding=1)
        moments = (norm.running_mean.clone(), norm.running_var.clone())
        maps = F.relu(F.batch_norm(maps, *moments, norm.weight, norm.bias, training))
        if downsample == "max-pool":
            maps = F.max_pool2d(maps, 2)
    expected = maps.flatten(1)

    features = net(data)
    assert torch.equal(features, expected)
    toward = torch.randn_like(expected)
    params = list(net.parameters())
    got = torch.autograd.grad((features * toward).sum(), params)
    want = torch.autograd.grad((expected * toward).sum(), params)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_mean_pooling_is_the_spatial_mean_of_the_map() -> None:
    net = conv4(1, 48, 35, width=3, pooling="mean").eval()
    data = torch.rand(4, 1, 48, 35)
    torch.testing.assert_close(net(data), net.forward_map(data).mean(3).mean(2))


def test_initial_weights_are_xavier_uniform_and_biases_zero() -> None:
    torch.manual_seed(0)
    for block, fan_in in zip(conv4(1, 28, 28).blocks, [9, 576, 576, 576], strict=True):
        bound = (6 / (fan_in + 9 * 64)) ** 0.5
        weight = block.conv.weight
        assert 0.97 * bound < weight.abs().max() <= bound
        assert abs(weight.std() / (bound / 3**0.5) - 1) < 0.1
        assert block.conv.bias.count_nonzero() == 0


def test_too_small_an_image_is_refused_with_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"conv4 .*'stride' takes any.* 16 x 16 .* not 28 x 12"):
        conv4(1, 28, 12)


@pytest.mark.parametrize("item", [ItemSpec("vector", (784,)), ItemSpec("image", (28, 28))])
def test_items_that_are_no_images_are_refused(item: ItemSpec) -> None:
    with pytest.raises(ValueError, match="takes images"):
        Conv4(item, Conv4Hyperparameters())


@pytest.mark.parametrize("bad", [{"width": 0}, {"downsample": "mean"}, {"depth": 5}])
def test_impossible_hyperparameters_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Conv4Hyperparameters(**bad)
