"""Checks of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.func import functional_call, grad, vmap

from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.recipe import Hyperparameters
from metabench.engine.modes import using_engine
from metabench.engine.norm import convert, norm_mode
from metabench.engine.numerics import generator_states, same_states, seed_all
from metabench.engine.verify import TOLERANCE
from metabench.registry import Entry
from metabench.runner.checked import shown_settings
from metabench.runner.resolve import differences
from metabench.testing.conformance.facts import add_check_of_the_clock, add_checks_of_facts
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError
from metabench.testing.conformance.subject import share_of_range

ITEMS: tuple[ItemSpec, ...] = (
    ItemSpec("image", (1, 28, 28)),
    ItemSpec("image", (3, 32, 32)),
    ItemSpec("image", (3, 84, 84)),
    ItemSpec("vector", (12,)),
)
"""What a backbone is tried on; it may refuse any of them."""
LARGE = ItemSpec("image", (3, 224, 224))
"""What is tried where it refuses all of these."""
SAME = TOLERANCE["float32"]
ON_CUDA = 1e-2
IMPOSSIBLE = ItemSpec("no such kind", (2, 2))
META = torch.device("meta")


@dataclass(frozen=True)
class BackboneSubject:
    """A backbone that is checked; see `AlgorithmSubject`."""

    entry: Entry
    cls: type[Backbone]
    target: str = ""
    hp: Hyperparameters = field(default_factory=Hyperparameters)

    @cached_property
    def items(self) -> list[ItemSpec]:
        """Those that it takes."""
        return [item for item in ITEMS if self._takes(item)] or [
            item for item in (LARGE,) if self._takes(item)
        ]

    def _takes(self, item: ItemSpec) -> bool:
        try:
            self.build(item)
        except ValueError:
            return False
        return True

    def build(self, item: ItemSpec, seed: int = 0) -> Backbone:
        """With the weights of a seed, as the engine builds it."""
        seed_all("backbone", seed)
        backbone = self.cls(item, self.hp)
        convert(backbone)
        return backbone.to(memory_format=torch.channels_last).eval()

    def each(self) -> list[tuple[Backbone, Tensor]]:
        """Built for each kind of item that it takes, with four such items."""
        return [(self.build(item), some(item)) for item in self.items]


def some(item: ItemSpec, count: int = 4) -> Tensor:
    """Items (count, ...) of random values in [0, 1)."""
    return torch.rand(count, *item.shape, generator=torch.Generator().manual_seed(0))


CHECKS = Checks()
add_checks_of_facts(CHECKS)


@CHECKS.add("it takes something, and says with a ValueError what it does not take")
def items(subject: BackboneSubject) -> str:
    if not subject.items:
        shapes = ", ".join(f"{item.kind} {item.shape}" for item in (*ITEMS, LARGE))
        raise NonconformityError(
            f"it takes some of {shapes}", "it refused all of them", subject.cls.__init__
        )
    try:
        subject.build(IMPOSSIBLE)
    except ValueError as error:
        if not str(error):
            raise NonconformityError(
                "a ValueError that says what can be taken", "it says nothing", subject.cls.__init__
            ) from error
    except Exception as error:
        raise NonconformityError(
            "a ValueError for items that can't be taken",
            f"{type(error).__name__}: {error}",
            subject.cls.__init__,
        ) from error
    taken = ", ".join("x".join(map(str, item.shape)) for item in subject.items)
    with_settings = shown_settings(differences(subject.hp, subject.cls.hyperparameters()))
    return taken + (f"; {with_settings}" if with_settings else "")


@CHECKS.add("features (n, feature_dim), maps (n, *feature_map), finite, for one item and many")
def shapes(subject: BackboneSubject) -> str:
    told = []
    for backbone, data in subject.each():
        for count in (1, 4):
            with torch.no_grad():
                features = backbone(data[:count])
            _check_shape(features, (count, backbone.feature_dim), subject.cls.forward)
            if backbone.feature_map is not None:
                with torch.no_grad():
                    maps = backbone.forward_map(data[:count])
                _check_shape(maps, (count, *backbone.feature_map), subject.cls.forward_map)
        told.append(str(backbone.feature_dim))
    return f"feature_dim {', '.join(told)}"


def _check_shape(found: Any, shape: tuple[int, ...], at: object) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NonconformityError(f"a tensor {shape}", f"it is {what}", at)
    if not bool(torch.isfinite(found).all()):
        raise NonconformityError("finite features", "some are not", at)


@CHECKS.add("the same seed gives the same weights")
def determinism(subject: BackboneSubject) -> str:
    loaded = True
    for item in subject.items:
        one, other, third = (subject.build(item, seed).state_dict() for seed in (0, 0, 1))
        if any(not torch.equal(one[name], other[name]) for name in one):
            raise NonconformityError(
                "weights are drawn from PyTorch's global generator, which the engine seeds",
                "the same seed gave other weights",
                subject.cls.__init__,
            )
        loaded = loaded and all(torch.equal(one[name], third[name]) for name in one)
    return "the same for every seed" if loaded else ""


@CHECKS.add("at test an item's features depend on that item alone, and nothing is drawn or changed")
def items_apart(subject: BackboneSubject) -> None:
    for backbone, data in subject.each():
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        states = generator_states()
        with torch.no_grad():
            together = backbone(data)
            singly = torch.cat([backbone(data[i : i + 1]) for i in range(len(data))])
        if not share_of_range(together, singly) <= SAME:
            raise NonconformityError(
                "in eval mode an item's features don't depend on the others",
                f"they differ by {share_of_range(together, singly):.2g} of their range",
                subject.cls.forward,
            )
        if not same_states(states, generator_states()):
            raise NonconformityError(
                "in eval mode nothing is random", "random numbers were drawn", subject.cls.forward
            )
        changed = [n for n, value in backbone.state_dict().items() if not value.equal(before[n])]
        if changed:
            raise NonconformityError(
                "in eval mode no buffer changes", f"{changed[0]} did", subject.cls.forward
            )


@CHECKS.add("gradients reach every parameter, and are finite")
def gradients(subject: BackboneSubject) -> None:
    for backbone, data in subject.each():
        _needs_parameters(backbone)
        backbone.train()
        backbone(data).square().sum().backward()
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise NonconformityError(
                    "each parameter takes part in the features, or does not ask for a gradient",
                    f"{name} gets none",
                    subject.cls.forward,
                )
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise NonconformityError(
                    "finite gradients", f"that of {name} is not", subject.cls.forward
                )


@CHECKS.add("it works under torch.func, in which inner loops are run")
def transforms(subject: BackboneSubject) -> None:
    for backbone, data in subject.each()[:1]:  # the smallest: large networks take long
        _needs_parameters(backbone)
        # In float64: rounding makes ties, and another one of the tied then is the maximum.
        backbone, data = backbone.double(), data.double()
        params: dict[str, Tensor] = dict(backbone.named_parameters())

        def loss(weights: dict[str, Tensor], items: Tensor, network: Backbone = backbone) -> Tensor:
            with norm_mode(network, "fresh"):
                features: Tensor = functional_call(network, weights, (items,))
            return features.square().mean()

        def length_of_gradient(
            weights: dict[str, Tensor], items: Tensor, of: Callable[..., Any] = loss
        ) -> Tensor:
            return torch.stack([g.square().sum() for g in grad(of)(weights, items).values()]).sum()

        pairs = torch.stack([data, data.flip(0)])
        try:
            with using_engine("vmap"):
                at_once = vmap(grad(loss), in_dims=(None, 0), randomness="different")(params, pairs)
            singly = [grad(loss)(params, items) for items in pairs]
            twice = grad(length_of_gradient)(params, data)
        except RuntimeError as error:
            raise NonconformityError(
                "grad and vmap of torch.func go through it (no change in place, no look at values)",
                str(error).splitlines()[0],
                subject.cls.forward,
            ) from error
        if not all(bool(torch.isfinite(found).all()) for found in twice.values()):
            raise NonconformityError(
                "finite second derivatives, which MAML takes", "some are not", subject.cls.forward
            )
        for name, found in at_once.items():
            for row, one in zip(found, singly, strict=True):
                if share_of_range(one[name], row) > 1e-6 and bool(one[name].abs().max() > 1e-9):
                    raise NonconformityError(
                        "the same gradients for tasks at once and one by one",
                        f"those of {name} differ by {share_of_range(one[name], row):.2g}",
                        subject.cls.forward,
                    )


def _needs_parameters(backbone: Backbone) -> None:
    if not list(backbone.parameters()):
        raise NotApplicableError("it has no parameters")


@CHECKS.add("it computes in float64 too")
def float64(subject: BackboneSubject) -> None:
    for backbone, data in subject.each():
        with torch.no_grad():
            single = backbone(data)
            try:
                double = backbone.double()(data.double())
            except RuntimeError as error:
                raise NonconformityError(
                    "float64 weights and items", str(error).splitlines()[0], subject.cls.forward
                ) from error
        if double.dtype != torch.float64 or not share_of_range(double, single.double()) <= 1e-3:
            raise NonconformityError(
                "float64 features that are those of float32, more exactly",
                f"{double.dtype}, {share_of_range(double, single.double()):.2g} of the range apart",
                subject.cls.forward,
            )


@CHECKS.add("on the meta device, so that nothing is made on or read by the host")
def meta_device(subject: BackboneSubject) -> None:
    for backbone, data in subject.each():
        try:
            found = backbone.to(META)(data.to(META))
        except (RuntimeError, NotImplementedError) as error:
            raise NonconformityError(
                "features on a device that computes nothing",
                f"a value was read, or a tensor made on the host: {str(error).splitlines()[0]}",
                subject.cls.forward,
            ) from error
        if found.device != META:
            raise NonconformityError(
                "features on the device of the items", f"on {found.device}", subject.cls.forward
            )


@CHECKS.add("on a CUDA device it gives the features that it gives on the CPU")
def cuda(subject: BackboneSubject) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("there is no CUDA device")
    for backbone, data in subject.each():
        with torch.no_grad():
            on_cpu = backbone(data)
            on_cuda = backbone.to("cuda")(data.to("cuda")).to("cpu")
        if not share_of_range(on_cpu, on_cuda) <= ON_CUDA:
            raise NonconformityError(
                f"the same features on both, within {ON_CUDA:g} of their range",
                f"they differ by {share_of_range(on_cpu, on_cuda):.2g}",
                subject.cls.forward,
            )


@CHECKS.add("weights saved by safetensors, and loaded into a new one, give the same features")
def checkpoint(subject: BackboneSubject) -> None:
    for item in subject.items:
        one, other, data = subject.build(item, 0), subject.build(item, 1), some(item)
        other.load_state_dict(
            load(save({n: v.contiguous().clone() for n, v in one.state_dict().items()}))
        )
        with torch.no_grad():
            difference = share_of_range(one(data), other(data))
        if not difference <= SAME:
            raise NonconformityError(
                "all that decides the features is in parameters and persistent buffers",
                f"loaded into another one, features differ by {difference:.2g} of their range",
                subject.cls.__init__,
            )


add_check_of_the_clock(CHECKS)
