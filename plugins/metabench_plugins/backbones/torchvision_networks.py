"""Any classification network of torchvision, with its head taken off."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.mnasnet import MNASNet
from torchvision.ops import StochasticDepth

from metabench import DataCorruptError, DataMissingError, Field, Hyperparameters
from metabench_plugins.backbones.foreign import (
    ChannelNorm,
    ForeignHyperparameters,
    ForeignNetwork,
    unknown_network,
)

CLASSES = 1000
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Classifiers beside the head, in googlenet and inception_v3."""
MAPS = (
    *("permute", "layer4", "trunk_output", "features", "conv5", "layers", "inception5b"),
    *("Mixed_7c", "blocks.3"),
)
"""The modules that return the last map, by their names in one family of networks or another.

`permute`, which swin has behind its `features`, stands first.
"""
SIDES = {"vit_": "image_size", "maxvit_": "input_size"}
"""Families that are built for one size of images, and what says which."""


class TorchvisionHyperparameters(ForeignHyperparameters):
    network: Annotated[
        str,
        Field(
            description="a classifier of torchvision.models.list_models(); torchvision:NAME sets it"
        ),
    ] = "resnet18"

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        known = models.list_models(module=models)
        if name not in known:
            raise ValueError(unknown_network(name, known))
        return name

    @model_validator(mode="after")
    def _of_that_network(self) -> Self:
        known = [weights.name for weights in models.get_model_weights(self.network)]
        if self.library_weights is not None and self.library_weights not in known:
            raise ValueError(
                f"{self.network} has no weights {self.weights!r} in torchvision; there are "
                f"{', '.join(known)}, and files (STEM-HASH.safetensors or .pth)"
            )
        return self


class Torchvision(ForeignNetwork):
    """A classification network of torchvision by its name, `torchvision:resnet18`.

    The last layer that gives as many values as ImageNet has classes is taken off; what stands
    before it is kept, dropout and the fully connected layers of AlexNet and VGG among it, and its
    output is the features. Auxiliary classifiers are taken off too. Weights are drawn as
    torchvision draws them; or they are its own (`weights = "IMAGENET1K_V1"`), which it downloads
    into torch hub's cache (TORCH_HOME); or those of a file, with a head or without.

    Differs: a grey image becomes three equal channels. Vision transformers and MaxViT are built for
    the size of the images that there are, or for `size`; with torchvision's own weights they take
    the size that these were trained on, which has to be set.
    """

    name = "torchvision"
    reference = "torchvision, https://docs.pytorch.org/vision/stable/models.html"
    summary = "Any classification network of torchvision by name, its head taken off."
    hyperparameters: ClassVar[type[Hyperparameters]] = TorchvisionHyperparameters
    argument = "network"
    checked_with = MappingProxyType({"network": "squeezenet1_1"})

    hp: TorchvisionHyperparameters

    def make(self) -> nn.Module:
        network = self._built()
        for name in AUXILIARY:
            if hasattr(network, name):
                setattr(network, name, None)
                network.aux_logits = False  # type: ignore[assignment]
        head = _head(network)
        network.set_submodule(head, nn.Identity())
        self.left_out = (f"{head}.", *(f"{name}." for name in AUXILIARY))
        self.map_from = next((name for name in MAPS if _has(network, name)), "")
        for module in network.modules():
            if type(module) is StochasticDepth:
                module.__class__ = Depth
            elif type(module) is LayerNorm2d:
                module.__class__ = ChannelNorm
            elif type(module) is MNASNet:
                module.__class__ = OfNoVersion
        return network

    def _built(self) -> nn.Module:
        hp = self.hp
        more: dict[str, Any] = {}
        if hp.network in {"googlenet", "inception_v3"}:
            more["init_weights"] = hp.library_weights is None
        if hp.library_weights is None:
            for family, key in SIDES.items():
                if hp.network.startswith(family):
                    more[key] = self.side if key == "input_size" else self._square()
            return _get(hp.network, more)
        weights = models.get_model_weights(hp.network)[hp.library_weights]
        preset = weights.transforms()
        self.expects = (tuple(preset.mean), tuple(preset.std))
        if torch.get_default_device().type == "meta":  # a look at shapes
            return _get(hp.network, more)
        _check_cached(weights.url)
        try:
            return _get(hp.network, {**more, "weights": weights, "progress": False})
        except OSError as error:
            raise DataMissingError(
                f"the weights {weights} can't be had from {weights.url}: {error}",
                f"put that file into {torch.hub.get_dir()}/checkpoints",
            ) from error

    def _square(self) -> int:
        height, width = self.side
        if height != width:
            raise ValueError("it takes square images")
        return height

    @property
    def least(self) -> int:
        least: int = max(models.get_model_weights(self.hp.network).DEFAULT.meta["min_size"])
        return least

    @property
    def has_map(self) -> bool:
        return bool(self.map_from)

    def network_map(self, images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        module = self.network.get_submodule(self.map_from)
        handle = module.register_forward_hook(lambda _module, _given, found: kept.append(found))
        try:
            self.network(images)
        finally:
            handle.remove()
        return kept[0]


class Depth(StochasticDepth):  # type: ignore[misc]
    """Stochastic depth whose noise is not drawn in place, which `vmap` could not do."""

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return maps
        shape = [maps.shape[0] if self.mode == "row" else 1] + [1] * (maps.ndim - 1)
        kept = torch.bernoulli(maps.detach().new_full(shape, 1.0 - self.p))
        return maps * (kept / (1.0 - self.p) if self.p < 1.0 else kept)


class OfNoVersion(MNASNet):  # type: ignore[misc]
    """An MNASNet that loads tensors; torchvision's asks which version of it saved them."""

    _load_from_state_dict = nn.Module._load_from_state_dict


def _get(name: str, more: dict[str, Any]) -> nn.Module:
    device = torch.get_default_device()
    # RegNet computes its widths by tensors, and reads them.
    with torch.device("cpu" if name.startswith("regnet_") else device):
        network: nn.Module = models.get_model(name, **more)
    return network.to(device)


def _head(network: nn.Module) -> str:
    """The name of the layer that gives the classes."""
    found: list[str] = [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == CLASSES)
    ]
    return found[-1]


def _has(network: nn.Module, name: str) -> bool:
    return any(name == there for there, _ in network.named_modules())


@functools.lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Of the file as it is with that size and time of change: a cell builds its backbone often."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_cached(url: str) -> None:
    """Raise DataCorruptError where torch hub's cache has another content under that name.

    torchvision compares a file with the hash in its name only as it downloads it.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    expected = re.search(r"-([0-9a-f]{8,64})\.", file.name)
    if expected is None or not file.is_file():
        return
    facts = file.stat()
    found = _sha256(file, facts.st_size, facts.st_mtime_ns)
    if not found.startswith(expected[1]):
        raise DataCorruptError(
            f"the weights {file} are not what their name says: their SHA-256 begins {found[:8]}",
            "remove that file, and get it anew",
        )
