"""What a backbone plugin subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from torch import Tensor, nn

from metabench.api.recipe import Hyperparameters


@dataclass(frozen=True)
class ItemSpec:
    """What one item is.

    Attributes:
        kind: image, vector, tokens, or a plugin's own word.
        shape: of one item, (C, H, W) for an image.
        mean, std: per channel, for values in [0, 1]; None leaves them as they are.
    """

    kind: str
    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Backbone(nn.Module, ABC):
    """A network from items to features.

    It must work under `torch.func` (no in-place change of an input, no Python state written in
    `forward`). Where it convolves images, hand them to `channels_last` first. Use PyTorch's own
    batch norm: the engine replaces it by one with the four options of adaptation, which always
    keeps running averages for evaluation. Weights are drawn from PyTorch's global generator, which
    the engine seeds.

    Attributes:
        argument: the hyper-parameter that `NAME:VALUE` sets wherever a backbone is named, such as
            "network" for `torchvision:resnet18`; empty: the name takes no such part.
        checked_with: the hyper-parameters that `metabench check` builds it with, where the default
            ones make a network that it would take minutes to check.
        last_block: the modules that are its last block, by name, for fine-tuning that moves no
            more; empty: found by its structure.
        feature_dim: D of the features (n, D) that `forward` returns; set it in `__init__`.
        feature_map: (C, H, W) of what `forward_map` returns, or None where there is no map.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    family: ClassVar[str] = "network"
    reference: ClassVar[str]
    summary: ClassVar[str]
    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters
    argument: ClassVar[str] = ""
    checked_with: ClassVar[Mapping[str, object]] = MappingProxyType({})
    last_block: ClassVar[tuple[str, ...]] = ()

    feature_dim: int
    feature_map: tuple[int, int, int] | None = None

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        """Build the layers; `hp` is an instance of the class's `hyperparameters`.

        Raises:
            ValueError: items of that kind or shape cannot be taken; say which can.
        """
        super().__init__()
        self.item = item
        self.hp = hp

    @abstractmethod
    def forward(self, data: Tensor) -> Tensor:
        """Features (n, D) of items (n, ...)."""

    def forward_map(self, data: Tensor) -> Tensor:
        """Feature maps (n, C, H, W) of items (n, ...), where `feature_map` is not None."""
        raise TypeError(f"backbone {self.name} has no feature map")


def channels_last(images: Tensor) -> Tensor:
    """The same images (n, C, H, W), so that convolutions of them lie channels last in memory.

    Call it first in the `forward` of a convolutional backbone. The weights of a backbone lie
    channels last, and with two channels or more PyTorch then follows them. With one channel the
    layout of images is ambiguous: flattening dimensions makes PyTorch take it for the other one, in
    which max-pooling and batch norm are up to ten times slower on a CPU.
    """
    if images.shape[1] != 1:
        return images
    return images.squeeze(1).unsqueeze(-1).movedim(-1, 1)


BatchNormOption = Literal["support", "support+1", "running", "batch"]
"""Whose moments batch norm uses while an algorithm adapts; see `metabench.engine.norm`."""
