"""From indices to tensors: the items of a bank, gathered, turned and scaled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metabench.api.backbone import ItemSpec
from metabench.api.items import EpisodeBatch, Items, PyTree, Support, Targets, tree_map
from metabench.episodes.bank import ClassBank
from metabench.episodes.source import EpisodeIndices

Ids = NDArray[np.int64]

DEVICE_BYTES = 4 * 2**30
"""A split up to this size is kept on an accelerator; a larger one is gathered on the host."""


class ItemStore:
    """The items of one bank, ready to be gathered on a device.

    On the CPU, and for what is too large for an accelerator, the bank's own (memory-mapped)
    arrays are indexed, so nothing but the gathered items is read into memory.
    """

    def __init__(self, bank: ClassBank, item: ItemSpec, device: torch.device) -> None:
        self.bank = bank
        self.item = item
        self.device = device
        arrays = bank.data.values() if isinstance(bank.data, Mapping) else [bank.data]
        fits = sum(array.nbytes for array in arrays) <= DEVICE_BYTES
        self._resident: PyTree = None
        if device.type != "cpu" and fits:
            self._resident = tree_map(lambda a: torch.from_numpy(np.array(a)).to(device), bank.data)

    def gather(self, items: Ids, turns: Ids | None = None) -> PyTree:
        """Items as float tensors on the device.

        Args:
            items: indices (...) of stored items.
            turns: quarter turns (...) of the same shape; None: none.

        Returns:
            a pytree of tensors (..., *item shape).
        """
        if self._resident is not None:
            index = torch.from_numpy(np.ascontiguousarray(items)).to(self.device)
            data = tree_map(lambda a: a[index], self._resident)
        else:
            data = tree_map(lambda a: torch.from_numpy(a[items]).to(self.device), self.bank.data)
        if turns is not None and turns.any():
            data = self._turned(data, turns)
        return tree_map(self._scaled, data)

    def _turned(self, data: Tensor, turns: Ids) -> Tensor:
        where = torch.from_numpy(np.ascontiguousarray(turns)).to(self.device)
        turned = data.clone()
        for quarter in (1, 2, 3):
            chosen = where == quarter
            turned[chosen] = torch.rot90(data[chosen], quarter, dims=(-2, -1))
        return turned

    def _scaled(self, data: Tensor) -> Tensor:
        if self.item.kind != "image":
            return data
        pixels = data.to(torch.float32)
        if data.dtype == torch.uint8:
            pixels = pixels / 255
        if self.item.mean is not None and self.item.std is not None:
            mean = torch.tensor(self.item.mean, device=self.device).view(-1, 1, 1)
            std = torch.tensor(self.item.std, device=self.device).view(-1, 1, 1)
            pixels = (pixels - mean) / std
        return pixels


def labels(values: Ids, device: torch.device) -> Tensor:
    """Class ids as an int64 tensor on the device."""
    return torch.from_numpy(np.array(values, dtype=np.int64)).to(device)


def support_of(drawn: EpisodeIndices, store: ItemStore, ways: int) -> Support:
    """The support sets of E episodes, from raw items."""
    data = store.gather(drawn.support_items, drawn.support_turns)
    return Support(Items(data), Targets(labels(drawn.support_labels, store.device)), ways)


def queries_of(drawn: EpisodeIndices, store: ItemStore) -> Items:
    """The queries of E episodes, without their targets."""
    return Items(store.gather(drawn.query_items, drawn.query_turns))


def training_batch(drawn: EpisodeIndices, store: ItemStore, ways: int) -> EpisodeBatch:
    """E episodes with their query targets, for meta-training only."""
    return EpisodeBatch(
        support_of(drawn, store, ways),
        queries_of(drawn, store),
        Targets(labels(drawn.query_labels, store.device)),
        labels(drawn.classes, store.device),
    )
