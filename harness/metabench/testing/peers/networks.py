"""Both sides' networks: ours as a cell builds it, and the same as a peer's user writes it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone, ItemSpec, channels_last
from metabench.api.items import EpisodeBatch, PyTree, tree_map
from metabench.api.recipe import Recipe
from metabench.engine.build import Blueprint
from metabench.engine.feed import EpisodeFeed, TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.norm import BatchNorm
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.plugins import registry

IMAGE = ItemSpec("image", (1, 28, 28))
MAML_PROTOCOL = Protocol(ways=5, shots=1, queries=15, episodes=2)
INNER_LR = 0.01
"""Small, so that 50 steps on made-up images stay finite; no time depends on it."""
CLASSES, ITEMS_A_CLASS = 659, 20
"""As Omniglot's evaluation set."""


def made_up_bank() -> ClassBank:
    """Random images in the numbers of Omniglot's evaluation set."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (CLASSES * ITEMS_A_CLASS, *IMAGE.shape), dtype=np.uint8)
    offsets = np.arange(CLASSES + 1, dtype=np.int64) * ITEMS_A_CLASS
    names = tuple(str(number) for number in range(CLASSES))
    return ClassBank(data, offsets, names, digest="0" * 32, split="train")


def built(
    algorithm: str,
    backbone: str,
    bank: ClassBank,
    protocol: Protocol,
    device: str = "cpu",
    item: ItemSpec = IMAGE,
    **hyperparameters: Any,
) -> Algorithm:
    """A registered algorithm on a registered backbone, which has its own defaults (conv4: 64)."""
    cls = registry().get("algorithm", algorithm).load()
    body = registry().get("backbone", backbone).load()
    return Blueprint(
        algorithm=cls,
        algorithm_hp=cls.hyperparameters(**hyperparameters),
        backbone=body,
        backbone_hp=body.hyperparameters(),
        recipe=Recipe(),
        protocol=protocol,
        seed=0,
    ).build(item, bank, torch.device(device))


def our_maml(bank: ClassBank, order: int, steps: int, device: str) -> GradientAlgorithm:
    """MAML on conv4-64 with max-pooling; queries normalised by their own moments.

    That is the one treatment of batch norm that the peers' examples have too.
    """
    name = {1: "fomaml", 2: "maml"}[order]
    settings: dict[str, Any] = {"inner_lr": INNER_LR, "inner_steps": steps}
    found = built(name, "conv4", bank, MAML_PROTOCOL, device, batch_norm="batch", **settings)
    assert isinstance(found, GradientAlgorithm)
    return found


def documented(algorithm: GradientAlgorithm) -> nn.Sequential:
    """The same network as the peers' examples write it, with a copy of our weights.

    Convolution, batch norm without running moments, ReLU and max-pooling as four PyTorch layers,
    in PyTorch's default memory layout. Its parameters are in our order.
    """
    body = documented_body(algorithm.backbone, track=False)
    return nn.Sequential(*body, copy.deepcopy(algorithm.head)).train()


def documented_body(backbone: Backbone, track: bool) -> nn.Sequential:
    """Conv4 of those layers and a flattening one; `track`: batch norm with running moments."""
    layers: list[nn.Module] = []
    for block in copy.deepcopy(backbone.get_submodule("blocks")).children():
        plain_norms(block, track)
        for layer in (block.get_submodule("conv"), block.get_submodule("norm")):
            for parameter in layer.parameters():
                parameter.data = default_layout(parameter.detach())
            layers.append(layer)
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def default_layout(tree: PyTree) -> Any:
    """The same tensors as a `DataLoader` makes them: contiguous."""

    def contiguous(x: Any) -> Any:
        # Where there is one channel, `contiguous` would take ours for contiguous already.
        if not torch.is_tensor(x):
            return x
        return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)

    return tree_map(contiguous, tree)


def twin(algorithm: GradientAlgorithm) -> nn.Sequential:
    """Our network for a peer: its own copy of backbone and head, of plain PyTorch layers.

    It has all that we do to make the network fast (max-pool before the ReLU, weights and images
    channels last), so that what is compared is the inner loop alone. Its parameters are in our
    order. The backbone's own class is left out: `higher` takes no module that is an abstract class
    as well.
    """
    blocks = copy.deepcopy(algorithm.backbone.get_submodule("blocks"))
    network = nn.Sequential(ChannelsLast(), blocks, nn.Flatten(), copy.deepcopy(algorithm.head))
    plain_norms(network, track=False)
    return network.train()


class ChannelsLast(nn.Module):
    """The layer that lays images channels last."""

    def forward(self, images: Tensor) -> Tensor:
        return channels_last(images)


def plain_norms(module: nn.Module, track: bool) -> None:
    """Put PyTorch's batch norms in the places of ours, in place; `track`: with running moments."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            layer = nn.BatchNorm2d(child.channels, eps=child.eps, track_running_stats=track)
            assert child.weight is not None
            assert child.bias is not None
            layer.weight, layer.bias = nn.Parameter(child.weight), nn.Parameter(child.bias)
            if track:
                layer.running_mean, layer.running_var = child.running_mean, child.running_var
            setattr(module, name, layer.to(child.weight.device))
        else:
            plain_norms(child, track)


def meta_batch(bank: ClassBank, tasks: int, device: str) -> tuple[EpisodeFeed, EpisodeBatch]:
    """A batch of 5w1s15q episodes, and the feed that it came from."""
    recipe = Recipe(meta_batch=tasks)
    store = ItemStore(bank, IMAGE, torch.device(device))
    feed = EpisodeFeed(TrainingData(store, MAML_PROTOCOL), recipe, 0, "peers")
    return feed, feed.batch(0)[1]


def in_float64(batch: EpisodeBatch) -> EpisodeBatch:
    """The same batch, its items in double precision."""
    doubled: EpisodeBatch = tree_map(
        lambda x: x.double() if torch.is_tensor(x) and x.is_floating_point() else x, batch
    )
    return doubled
