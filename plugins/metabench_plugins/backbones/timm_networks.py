"""Any network of timm, its head taken off; timm is an extra: `pip install metabench[timm]`."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from metabench import BatchNorm, DataMissingError, Field, Hyperparameters, UsageError
from metabench_plugins.backbones.foreign import (
    ChannelNorm,
    ForeignHyperparameters,
    ForeignNetwork,
    unknown_network,
)


class TimmHyperparameters(ForeignHyperparameters):
    network: Annotated[
        str,
        Field(description="one of timm.list_models(), without a tag; timm:NAME sets it"),
    ] = "resnet18"

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        known = _timm().list_models()
        if name not in known:
            plain, _, tag = name.partition(".")
            if plain in known:
                raise ValueError(f"the network is {plain!r}, and {tag!r} belongs in weights")
            raise ValueError(unknown_network(name, known))
        return name

    @model_validator(mode="after")
    def _of_that_network(self) -> Self:
        if self.library_weights is not None:
            known = _timm().list_models(f"{self.network}.*", pretrained=True)
            tags = [name.partition(".")[2] for name in known]
            if self.library_weights not in tags:
                raise ValueError(
                    f"{self.network} has no weights {self.weights!r} in timm; there are "
                    f"{', '.join(tags) or 'none'}, and files (STEM-HASH.safetensors or .pth)"
                )
        return self


class Timm(ForeignNetwork):
    """A network of timm by its name, `timm:resnet18`.

    What timm itself makes of it for no classes at all: pooling and what a network computes before
    its classifier stay. Weights are drawn as timm draws them; or they are its own, by their tag
    (`weights = "a1_in1k"`), which it downloads into the cache of the Hugging Face hub (HF_HOME); or
    those of a file, with a head or without.

    Who published weights on the hub can put others under the same tag. A cell's key has the tag,
    not the content, and timm states no digest to compare with, so the harness doesn't notice: where
    a number has to stay, take a file, whose name says what is in it.

    Differs: a grey image becomes three equal channels. Networks of a fixed image size (vision
    transformers) are built for the images that there are, or for `size`; weights of timm's own are
    fitted to it by timm. A network that has another kind of normalisation than batch or layer norm
    may lack the second derivatives that MAML takes; `metabench check backbone:timm:NAME` tells.
    """

    name = "timm"
    reference = "Wightman 2019, doi:10.5281/zenodo.4414861"
    summary = "Any network of timm by name, its head taken off; needs the extra timm."
    hyperparameters: ClassVar[type[Hyperparameters]] = TimmHyperparameters
    argument = "network"
    checked_with = MappingProxyType({"network": "test_resnet"})

    hp: TimmHyperparameters

    def make(self) -> nn.Module:
        hp, timm = self.hp, _timm()
        name = hp.network if hp.library_weights is None else f"{hp.network}.{hp.library_weights}"
        facts = timm.models.get_pretrained_cfg(name)
        more: dict[str, Any] = {"num_classes": 0}
        if facts is not None and facts.fixed_input_size:
            more["img_size"] = self.side
        self.made_for = max(facts.input_size) if facts is not None else 224
        if hp.library_weights is not None and facts is not None:
            self.expects = (tuple(facts.mean), tuple(facts.std))
        network = _created(timm, name, more, hp.library_weights is not None)
        head = (facts and facts.classifier) or ()
        self.left_out = tuple(f"{part}." for part in ([head] if isinstance(head, str) else head))
        _adapt(network)
        return network

    @property
    def least(self) -> int:
        return self.made_for

    @property
    def has_map(self) -> bool:
        return True

    def network_map(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.forward_features(images)  # type: ignore[operator]
        channels = self.network.num_features
        # Some have the channels last.
        last = maps.ndim == 4 and maps.shape[1] != channels and maps.shape[3] == channels
        return maps.movedim(3, 1) if last else maps


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError("the backbone timm needs timm: pip install 'metabench[timm]'") from error
    return timm


def _created(timm: Any, name: str, more: dict[str, Any], pretrained: bool) -> nn.Module:
    if not pretrained or torch.get_default_device().type == "meta":  # or a look at shapes
        network: nn.Module = timm.create_model(name, **more)
        return network
    try:
        network = timm.create_model(name, pretrained=True, **more)
    except Exception as error:  # of whichever library the hub's client is built on
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataMissingError(
            f"timm's weights {name} can't be had: {told}",
            "they are downloaded once, into the cache of the Hugging Face hub (HF_HOME)",
        ) from error
    return network


class NormAct(BatchNorm):
    """The engine's batch norm, and the activation that timm puts into the same layer."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


def _adapt(network: nn.Module) -> None:
    """Replace what only timm has by what computes the same and that the engine knows."""
    layers: Any = _timm().layers
    for name, module in list(network.named_modules()):
        if type(module) is layers.BatchNormAct2d:
            network.set_submodule(name, _norm_act(module))
        elif type(module) in {layers.LayerNorm, layers.LayerNormFp32}:
            module.__class__ = nn.LayerNorm
        elif type(module) in {layers.LayerNorm2d, layers.LayerNorm2dFp32}:
            module.__class__ = ChannelNorm
        elif hasattr(module, "fused_attn"):
            module.fused_attn = False


def _norm_act(theirs: Any) -> NormAct:
    momentum = 0.1 if theirs.momentum is None else theirs.momentum
    ours = NormAct(theirs.num_features, theirs.eps, momentum, theirs.affine)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    ours.running_mean, ours.running_var = theirs.running_mean, theirs.running_var
    ours.drop, ours.act = theirs.drop, theirs.act
    return ours
