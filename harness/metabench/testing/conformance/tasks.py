"""Small tasks of made-up images, on which an algorithm is checked within seconds.

A class is a smooth pattern, its items are that pattern moved and disturbed: easy, and yet something
that can be learnt. In `noise` items and classes have nothing to do with each other.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from metabench.api.backbone import Backbone, ItemSpec, channels_last
from metabench.api.recipe import Hyperparameters
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol

SIDE = 16
IMAGE = ItemSpec("image", (1, SIDE, SIDE))
CLASSES = {"train": 16, "validation": 10, "test": 12}
ITEMS_A_CLASS = 24
WIDTH = 8
PROTOCOL = Protocol(ways=5, shots=2, queries=3, episodes=2)


class SmallNet(Backbone):
    """Two blocks of 3 x 3 convolution, batch norm, max-pooling and ReLU, of 8 channels."""

    name = "small-net"
    reference = "none"
    summary = "What algorithms are checked on."
    feature_map = (WIDTH, SIDE // 4, SIDE // 4)

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        self.feature_dim = WIDTH * (SIDE // 4) ** 2
        channels = (item.shape[0], WIDTH)
        self.blocks = nn.Sequential(*(_block(count) for count in channels))

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, 1, 16, 16) images to (n, 8, 4, 4) maps."""
        maps: Tensor = self.blocks(channels_last(data))
        return maps

    def forward(self, data: Tensor) -> Tensor:
        """(n, 1, 16, 16) images to (n, 128) features."""
        return self.forward_map(data).flatten(1)


def _block(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, WIDTH, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(WIDTH), nn.MaxPool2d(2), nn.ReLU())


@functools.cache
def bank(split: str) -> ClassBank:
    """A split: `train`, `validation` or `test`."""
    classes = CLASSES[split]
    rng = np.random.default_rng(list(CLASSES).index(split))
    patterns = _smooth(rng.standard_normal((classes, 1, SIDE, SIDE)))
    moved = np.stack(
        [
            np.roll(pattern, tuple(rng.integers(-2, 3, 2)), axis=(-2, -1))
            for pattern in np.repeat(patterns, ITEMS_A_CLASS, axis=0)
        ]
    )
    images = moved + 0.3 * rng.standard_normal(moved.shape)
    return _bank(images, classes, split)


@functools.cache
def noise() -> ClassBank:
    """A test split in which there is nothing to find: no image tells anything of its class."""
    classes = CLASSES["test"]
    shape = (classes * ITEMS_A_CLASS, 1, SIDE, SIDE)
    return _bank(np.random.default_rng(99).standard_normal(shape), classes, "test")


def _smooth(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Low frequencies of white noise, of unit variance."""
    frequency = np.fft.fftfreq(SIDE)
    low = np.exp(-100 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * low).real
    spread: NDArray[np.float64] = smooth / smooth.std((-2, -1), keepdims=True)
    return spread


def _bank(images: NDArray[np.float64], classes: int, split: str) -> ClassBank:
    data = np.clip(128 + 48 * images, 0, 255).astype(np.uint8)
    offsets = np.arange(classes + 1) * (len(data) // classes)
    names = tuple(f"{split} {number}" for number in range(classes))
    return ClassBank(data, offsets, names, "0" * 32, split)
