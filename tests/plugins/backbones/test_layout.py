"""Maps lie channels last in memory, whatever was done to the images before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metabench import ItemSpec, channels_last
from metabench.plugins import load_registry

SMALL: dict[str, dict[str, Any]] = {
    "conv4": {"width": 4},
    "conv6": {"width": 4},
    "resnet12": {"widths": (4, 4, 4, 4)},
    "resnet10": {"width": 4},
    "wrn-28-10": {"blocks": 1, "widen": 1},
    "torchvision": {"network": "mobilenet_v3_small", "size": 64},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_flattened_sets_are_channels_last(name: str, channels: int) -> None:
    kind = load_registry(strict=True).get("backbone", name).load()
    item = ItemSpec("image", (channels, 32, 32))
    hp = kind.hyperparameters(**SMALL[name])
    backbone = kind(item, hp).to(memory_format=torch.channels_last)
    sets = torch.rand(2, 3, channels, 32, 32)
    maps = backbone.forward_map(sets.flatten(0, 1))
    assert maps.stride(1) == 1
    assert maps.shape == (6, *backbone.feature_map)


def test_the_images_stay_what_they_are() -> None:
    for channels in (1, 3):
        images = torch.rand(5, channels, 4, 6)
        assert torch.equal(channels_last(images), images)
