"""Reading items of memory-mapped arrays without keeping what was read in resident memory."""

from __future__ import annotations

import mmap
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

RESIDENT_BYTES = 256 * 2**20
"""How much of one mapped array may be resident; a smaller array may be so as a whole."""
AROUND_BYTES = 2 * 64 * 2**10
"""Linux maps up to 64 KiB around a page that is read, at either end of an item."""

_read_of: WeakKeyDictionary[mmap.mmap, int] = WeakKeyDictionary()
"""Bytes read of each large map since its pages were let go of: splits may share a map, and its
bound with it. Who reads on after another let go only has the pages mapped anew."""


class MappedItems:
    """Items of an array (n_rows, ...), which may be a memory map.

    What is read of a map counts as the process's resident memory until the system needs it
    otherwise. So of a large map the pages are let go of now and then; they stay in the system's
    cache, and reading them again costs next to nothing. Where the system offers no way to do so,
    and for arrays in memory, this only indexes.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self._bytes_an_item = array.nbytes // max(1, len(array)) + AROUND_BYTES
        self._map = _large_map(array)
        if self._map is not None:
            # Else a fault reads ahead by whatever the disk is set to, of items that nobody wants:
            # episodes, and the shuffled batches of plain training, lie anywhere in the map. Only
            # what takes a split as a whole (a `Fit` phase, embedding it) reads it in its order.
            self._map.madvise(mmap.MADV_RANDOM)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """A copy (..., *item shape) of the items at these rows (...)."""
        chosen: NDArray[Any] = self._array.take(rows, axis=0)
        if self._map is not None:
            read = _read_of.get(self._map, 0) + rows.size * self._bytes_an_item
            if read > RESIDENT_BYTES:
                self._map.madvise(mmap.MADV_DONTNEED)
                read = 0
            _read_of[self._map] = read
        return chosen


def _large_map(array: NDArray[Any]) -> mmap.mmap | None:
    """The read-only map that a large array lies in, where the system takes advice about it."""
    if array.nbytes <= RESIDENT_BYTES or array.flags.writeable:
        return None
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    advised = hasattr(mmap, "MADV_RANDOM") and hasattr(mmap, "MADV_DONTNEED")
    return owner if advised and isinstance(owner, mmap.mmap) else None
