"""conv6: the network written out again from the paper's code, sizes, and what it shares."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metabench import ItemSpec
from metabench_plugins.backbones.conv4 import Conv4Hyperparameters
from metabench_plugins.backbones.conv6 import Conv6

torch.set_num_threads(1)


def conv6(*shape: int, **settings: object) -> Conv6:
    return Conv6(ItemSpec("image", shape), Conv4Hyperparameters(**settings))


def test_it_has_the_parameters_that_a_hand_counts() -> None:
    expected = (3 * 9 * 64 + 64) + 5 * (64 * 9 * 64 + 64) + 6 * (64 + 64)
    assert sum(p.numel() for p in conv6(3, 84, 84).parameters()) == expected == 187_200


@pytest.mark.parametrize(
    ("shape", "options", "feature_map"),
    [
        ((3, 84, 84), {}, (64, 5, 5)),  # the authors' final_feat_dim, 1600
        ((1, 28, 28), {}, (64, 1, 1)),
        ((1, 28, 28), {"downsample": "stride"}, (64, 2, 2)),
        ((1, 28, 28), {"width": 5, "downsample": "stride", "pooling": "mean"}, (5, 2, 2)),
    ],
)
def test_sizes(
    shape: tuple[int, ...], options: dict[str, object], feature_map: tuple[int, ...]
) -> None:
    net = conv6(*shape, **options)
    data = torch.rand(2, *shape)
    assert net.feature_map == feature_map
    assert net.forward_map(data).shape == (2, *feature_map)
    flat = feature_map[0] if options.get("pooling") == "mean" else torch.Size(feature_map).numel()
    assert net(data).shape == (2, net.feature_dim) == (2, flat)


@pytest.mark.parametrize("training", [True, False])
def test_six_blocks_of_which_the_first_four_pool(training: bool) -> None:
    """Convolution, batch norm, ReLU, then pooling if it is one of the first four."""
    torch.manual_seed(0)
    net = conv6(2, 33, 35, width=3).train(training)
    tensors = net.state_dict()
    maps = data = torch.rand(4, 2, 33, 35)
    for i in range(6):
        own = {k.removeprefix(f"blocks.{i}."): v for k, v in tensors.items() if f"ks.{i}." in k}
        maps = F.conv2d(maps, own["conv.weight"], own["conv.bias"], padding=1)
        moments = (own["norm.running_mean"].clone(), own["norm.running_var"].clone())
        scale = (own["norm.weight"], own["norm.bias"])
        maps = F.batch_norm(maps, *moments, *scale, training=training).relu()
        if i < 4:
            maps = F.max_pool2d(maps, 2)
    torch.testing.assert_close(net(data), maps.flatten(1))


def test_weights_begin_at_the_scale_of_the_authors_code() -> None:
    """A normal distribution with the deviation sqrt(2 / (9 * outputs))."""
    torch.manual_seed(0)
    for block in conv6(3, 84, 84).blocks:
        weight = block.conv.weight
        assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.06)
        assert weight.abs().max() > 0.13  # uniform ones of that deviation end at .102
        assert not block.conv.bias.any()


def test_small_images_are_refused_with_the_least_size() -> None:
    with pytest.raises(ValueError, match=r"conv6 .*needs 16 x 16 pixels or more, not 15 x 40"):
        conv6(1, 15, 40)
