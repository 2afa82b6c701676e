"""From indices to tensors: the items of a bank, gathered, turned and scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metabench.api.backbone import ItemSpec
from metabench.api.items import (
    EpisodeBatch,
    Items,
    PyTree,
    Support,
    Targets,
    tree_map,
    unflatten_sets,
)
from metabench.engine.mapped import MappedItems
from metabench.episodes.bank import ClassBank
from metabench.episodes.source import EpisodeIndices

Ids = NDArray[np.int64]
Array = Any
"""An array of NumPy on the CPU, a tensor on an accelerator: the same operations work on both."""

DEVICE_BYTES = 4 * 2**30
"""A split up to this size is kept on an accelerator; a larger one is gathered on the host."""


class ItemStore:
    """The items of one bank, ready to be gathered on a device.

    On the CPU, and for what is too large for an accelerator, the bank's own (memory-mapped)
    arrays are indexed, so nothing but the gathered items is read into memory.

    Images come out channels last in memory, for which convolution, batch norm and pooling on a
    CPU, and convolution on an accelerator, have their fastest kernels.
    """

    def __init__(self, bank: ClassBank, item: ItemSpec, device: torch.device) -> None:
        self.bank = bank
        self.item = item
        self.device = device
        self._stored: PyTree = None
        self._resident: PyTree = None
        if device.type != "cpu" and bank.nbytes <= DEVICE_BYTES:
            self._resident = tree_map(lambda a: torch.from_numpy(a).to(device), bank.items())
        else:
            self._stored = tree_map(MappedItems, bank.data)
        self._moments: tuple[Array, Array] | None = None
        if item.mean is not None and item.std is not None:
            mean, std = np.array(item.mean, np.float32), np.array(item.std, np.float32)
            self._moments = self._placed(mean), self._placed(std)

    def gather(self, items: Ids, turns: Ids | None = None) -> PyTree:
        """Items as float tensors on the device.

        Args:
            items: ids (...) of stored items, as the bank counts them.
            turns: quarter turns (...) of the same shape; None: none.

        Returns:
            a pytree of tensors (..., *item shape); where they are images, channel has stride 1.
        """
        return self.gather_beside(items, turns)[0]

    def gather_beside(
        self, items: Ids, turns: Ids | None, *ids: Ids
    ) -> tuple[PyTree, list[Tensor]]:
        """The same, and `ids` of any kind as int64 tensors: all of it in one transfer.

        Images that are not on the accelerator themselves are a second one.
        """
        quarters = () if turns is None or not turns.any() else (1, 2, 3)
        # Found on the host, for which an accelerator then need not be waited for.
        turned = [np.flatnonzero(turns == quarter) for quarter in quarters]
        if self._resident is not None:
            sent = _sent([*ids, items, *turned], self.device)
            index, places = sent[len(ids)], sent[len(ids) + 1 :]
            data = tree_map(lambda a: a[index], self._resident)
            _turn(data, dict(zip(quarters, places, strict=True)), items.ndim)
        else:
            sent = _sent(ids, self.device) if ids else []
            rows = self.bank.rows_of(items)
            data = tree_map(lambda a: a[rows], self._stored)
            _turn(data, dict(zip(quarters, turned, strict=True)), items.ndim)
            data = tree_map(self._placed, data)
        found = tree_map(self._scaled if self.item.kind == "image" else torch.as_tensor, data)
        return found, sent[: len(ids)]

    def _placed(self, array: NDArray[Any]) -> Array:
        """On the device; on the CPU NumPy does all the work.

        An episode's images are few: PyTorch's threads take longer to start than to convert them,
        and where other processes have the cores, to wait for each other.
        """
        return array if self.device.type == "cpu" else _on(array, self.device)

    def _scaled(self, images: Array) -> Tensor:
        """Images (..., C, H, W) as a new float32 tensor that lies in memory as (..., H, W, C)."""
        *leading, channels, height, width = images.shape
        shape = (*leading, height, width, channels)
        pixels: Array
        if isinstance(images, Tensor):
            pixels = torch.empty(shape, dtype=torch.float32, device=images.device)
        else:
            pixels = np.empty(shape, np.float32)
        for channel in range(channels):
            pixels[..., channel] = images[..., channel, :, :]
        if images.dtype in (np.uint8, torch.uint8):
            pixels /= 255
        if self._moments is not None:
            mean, std = self._moments
            pixels -= mean
            pixels /= std
        return torch.as_tensor(pixels).movedim(-1, -3)


def _turn(images: Array, turned: Mapping[int, Array], leading: int) -> None:
    """Turn images (..., C, H, W) in place: by quarters, the places of those to be turned so."""
    if not turned:
        return
    flat = images.reshape(-1, *images.shape[leading:])
    rot90: Any = torch.rot90 if isinstance(images, Tensor) else np.rot90
    for quarter, chosen in turned.items():
        flat[chosen] = rot90(flat[chosen], quarter, (-2, -1))


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device, without waiting for it to be there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _sent(arrays: Sequence[Ids], device: torch.device) -> list[Tensor]:
    """Arrays of ids as int64 tensors on a device, all in one transfer."""
    flat = _on(np.concatenate([array.ravel() for array in arrays], dtype=np.int64), device)
    parts = torch.split(flat, [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def labels(values: Ids, device: torch.device) -> Tensor:
    """Class ids as an int64 tensor on the device."""
    return _sent([values], device)[0]


def support_of(drawn: EpisodeIndices, store: ItemStore, ways: int) -> Support:
    """The support sets of E episodes, from raw items."""
    data, [known] = store.gather_beside(
        drawn.support_items, drawn.support_turns, drawn.support_labels
    )
    return Support(Items(data), Targets(known), ways)


def queries_of(drawn: EpisodeIndices, store: ItemStore) -> Items:
    """The queries of E episodes, without their targets."""
    return Items(store.gather(drawn.query_items, drawn.query_turns))


def training_batch(drawn: EpisodeIndices, store: ItemStore, ways: int) -> EpisodeBatch:
    """E episodes with their query targets, for meta-training only."""
    items = np.concatenate([drawn.support_items.ravel(), drawn.query_items.ravel()])
    turns = np.concatenate([drawn.support_turns.ravel(), drawn.query_turns.ravel()])
    ids = drawn.support_labels, drawn.query_labels, drawn.classes
    data, [known, asked, classes] = store.gather_beside(items, turns, *ids)
    middle, episodes = drawn.support_items.size, len(drawn.numbers)
    support = unflatten_sets(tree_map(lambda flat: flat[:middle], data), episodes)
    queries = unflatten_sets(tree_map(lambda flat: flat[middle:], data), episodes)
    return EpisodeBatch(
        Support(Items(support), Targets(known), ways), Items(queries), Targets(asked), classes
    )
