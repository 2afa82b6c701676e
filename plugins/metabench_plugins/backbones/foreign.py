"""What backbones made of another library's networks share: images, scales, what doesn't fit."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metabench import Backbone, Field, Hyperparameters, ItemSpec, channels_last, load_weights
from metabench_plugins.backbones.images import image_shape
from metabench_plugins.backbones.weights import FILES, load_into

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and deviations of the channels."""
SCALES: dict[str, Scale] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
COLOURS = 3
OURS = "network."
"""Before the names of the network's tensors in a cell's checkpoint."""


class ForeignHyperparameters(Hyperparameters):
    network: Annotated[str, Field(description="its name in the library")] = ""
    weights: Annotated[
        str | None,
        Field(
            description="none: drawn; the library's own by their name, which it downloads; or a "
            "file STEM-HASH.safetensors, or .pth, in the data folder's folder weights"
        ),
    ] = None
    size: Annotated[
        int | None,
        Field(ge=8, le=1024, description="pixels a side that images are resized to; none: as is"),
    ] = None
    normalise: Annotated[
        Literal["auto", "none", "imagenet", "symmetric"],
        Field(
            description="scale of the values: ImageNet's mean and deviation, or -1 to 1; auto: "
            "what the library's own weights expect; drawn ones and a file: as they are"
        ),
    ] = "auto"

    @property
    def weights_file(self) -> str | None:
        """The name of a file, where that is what is given."""
        return self.weights if self.weights is not None and self.weights.endswith(FILES) else None

    @property
    def library_weights(self) -> str | None:
        """The name of the library's own, where they are what is given."""
        return None if self.weights_file else self.weights


class ForeignNetwork(Backbone):
    """A classifier of images of another library, with its head taken off.

    A subclass states in `make` how to get it. A grey image is handed on as three equal channels,
    since given weights have three. Images are resized, bilinearly, only where `size` is set.
    What can't be run under `torch.func` is replaced by what computes the same, see
    `adapt_modules`.

    Attributes:
        network: (n, 3, H, W) images to (n, D) features.
        side: H and W of the images that it is given.
        left_out: beginnings of the names of tensors that its head had.
        expects: the scale of the values that its weights were trained on, where that is known.
    """

    hp: ForeignHyperparameters
    feature_map: tuple[int, int, int] | None
    side: tuple[int, int]
    scale: Tensor | None
    shift: Tensor
    left_out: tuple[str, ...] = ()
    expects: Scale | None = None

    def __init__(self, item: ItemSpec, hp: ForeignHyperparameters) -> None:
        super().__init__(item, hp)
        channels, height, width = image_shape(item, f"backbone {self.name}")
        if channels not in {1, COLOURS}:
            raise ValueError(
                f"backbone {self.name} takes images of 1 or {COLOURS} channels, not {channels}"
            )
        self.side = (height, width) if hp.size is None else (hp.size, hp.size)
        self.shrinks = min(self.side) < min(height, width)
        try:
            self.network = self.make()
        except (AssertionError, ValueError) as error:
            raise self._cannot_take(error) from error
        adapt_modules(self.network)
        if hp.weights_file:
            self._load(hp.weights_file)
        auto = hp.normalise == "auto"
        self._set_scale(item, self.expects if auto else SCALES.get(hp.normalise))
        try:
            [self.feature_dim] = self._shape_of("forward")
            maps = self._shape_of("_mapped") if self.has_map else ()
            self.feature_map = (maps[0], maps[1], maps[2]) if len(maps) == 3 else None
        except (RuntimeError, AssertionError, ValueError) as error:
            raise self._cannot_take(error) from error

    @abstractmethod
    def make(self) -> nn.Module:
        """The network; sets `left_out` and, with weights of the library's own, `expects`."""

    @property
    @abstractmethod
    def least(self) -> int:
        """Pixels a side with which it works, for the message where it doesn't."""

    @property
    @abstractmethod
    def has_map(self) -> bool:
        """Whether `network_map` returns something, which may be a last map (n, C, H, W)."""

    @abstractmethod
    def network_map(self, images: Tensor) -> Tensor:
        """The last map of prepared images."""

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, D) features."""
        features: Tensor = self.network(self._prepared(data))
        return features

    def forward_map(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, C', H', W') maps."""
        return super().forward_map(data) if self.feature_map is None else self._mapped(data)

    def _mapped(self, data: Tensor) -> Tensor:
        return self.network_map(self._prepared(data))

    def _prepared(self, data: Tensor) -> Tensor:
        images = channels_last(data)
        if tuple(images.shape[2:]) != self.side:
            images = F.interpolate(images, self.side, mode="bilinear", antialias=self.shrinks)
        images = images.expand(-1, COLOURS, -1, -1)
        return images if self.scale is None else images * self.scale + self.shift

    def _set_scale(self, item: ItemSpec, wanted: Scale | None) -> None:
        """From the scale of the items to the one that is wanted, by `scale` and `shift`."""
        scale = shift = None
        if wanted is not None:
            mean, deviation = (torch.tensor(values) for values in wanted)
            scale = torch.tensor(item.std or (1.0,)) / deviation
            shift = (torch.tensor(item.mean or (0.0,)) - mean) / deviation
            scale, shift = (values.view(1, COLOURS, 1, 1) for values in (scale, shift))
        # They follow from item and hyper-parameters, and so are no part of what is saved.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def _load(self, name: str) -> None:
        tensors = load_weights(name)
        if all(key.startswith(OURS) for key in tensors):
            tensors = {key.removeprefix(OURS): value for key, value in tensors.items()}
        load_into(self.network, tensors, f"the weights {name}", self.left_out)

    def _shape_of(self, method: str) -> tuple[int, ...]:
        """The shape of what a method returns for one item, computed without computing."""
        call = _Call(self, method).eval()
        tensors = {**dict(call.named_parameters()), **dict(call.named_buffers())}
        nowhere = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
        with torch.no_grad(), torch.device("meta"):
            found = functional_call(call, nowhere, (torch.empty(1, *self.item.shape),))
        self.train()
        return tuple(found.shape[1:])

    def _cannot_take(self, error: Exception) -> ValueError:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        height, width = self.side
        return ValueError(
            f"{self.hp.network} can't take images of {height} x {width} ({told}); "
            f"size = {self.least} resizes them"
        )


class _Call(nn.Module):
    """A method of a backbone as a module's call."""

    def __init__(self, backbone: ForeignNetwork, method: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method

    def forward(self, data: Tensor) -> Any:
        return getattr(self.backbone, self.method)(data)


def unknown_network(name: str, known: Iterable[str]) -> str:
    """What to say of a name that no network has."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"there is no network called {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


# What can't be run under `torch.func` as it is.


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (n, C, H, W), in steps that can be derived twice."""

    def forward(self, maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(maps, dim=1, correction=0, keepdim=True)
        maps = (maps - mean) * torch.rsqrt(variance + self.eps)
        return maps * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class PlainAttention(nn.MultiheadAttention):
    """Attention in plain steps: the fused kernel's second derivative is missing."""

    def forward(self, *args: Any, **more: Any) -> Any:
        return super().forward(*args, **{**more, "need_weights": True})


class PlainHardsigmoid(nn.Hardsigmoid):
    """Hard sigmoid as a clamped line: PyTorch's own has no second derivative."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu6(maps + 3.0) / 6.0


def adapt_modules(network: nn.Module) -> None:
    """Make a network fit for `torch.func`: nothing in place, nothing fused."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if type(module) is nn.MultiheadAttention:
            module.__class__ = PlainAttention
        elif type(module) is nn.Hardsigmoid:
            module.__class__ = PlainHardsigmoid
