"""How many items and episodes evaluation computes at once: as many as a fixed working set holds.

What one of them takes is found by computing the first ones of a split and adding up the tensors
that are held at the same time. It depends on shapes and code alone, which are part of a cell's
identity, as the constants here are (see `numerics`). Free memory is never asked for.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metabench.engine.modes import current_engine, using_engine

log = logging.getLogger("metabench.evaluate")

WORKING_SET = 2**30
"""Bytes that evaluation holds at most, weights and the split's own items apart.

Except where adapting to one episode takes more, or predicting all of its queries at once, as a
transductive algorithm has to.
"""
KEPT = WORKING_SET * 3 // 4
"""Of these for embeddings, which are kept until the last episode that uses them."""

AT_ONCE = {"cpu": 2**25, "cuda": 2**28}
"""Bytes of tensors that one call may hold, by device type.

On a CPU this is about speed. glibc hands tensors of tens of megabytes back to the system, which
has to clear each page again at the next call: conv4-64 embeds 28 x 28 images in 0.17 ms each, 64 at
a time, and in 0.37 ms 256 at a time (conv4-64 at 84 x 84: 1.6 ms, 8 at a time, and 4 ms at 64). The
value for CUDA leaves room for the workspaces of kernels in the last quarter; it is unmeasured.
"""
_OF_THE_ALLOCATOR = ("can't allocate memory", "not enough memory")

MOST_ITEMS = 256
MOST_EPISODES = 256
"""Nothing is gained by more at once, and progress is told after each chunk."""


def table(device_type: str) -> dict[str, int]:
    """The constants above that decide sizes on a device, for a cell's identity."""
    return {
        "episodes": MOST_EPISODES,
        "items": MOST_ITEMS,
        "at_once": AT_ONCE[device_type],
        "kept": KEPT,
    }


_found: WeakKeyDictionary[object, dict[Hashable, int]] = WeakKeyDictionary()


def found_once(owner: object, inputs: Any, device_type: str, find: Callable[[], int]) -> int:
    """What `find` came to for these inputs' shapes, looked for once in the life of `owner`.

    Args:
        owner: the algorithm; what it holds depends on nothing else that may change.
        inputs: a pytree of tensors and whatever else can be compared.
    """
    leaves = tree_leaves(inputs)
    shapes = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    how = current_engine(), torch.is_autocast_enabled(device_type), AT_ONCE[device_type]
    known, key = _found.setdefault(owner, {}), (*shapes, *how)
    if key not in known:
        known[key] = find()
    return known[key]


def that_fit(call: Callable[[], object], count: int, device_type: str, most: int) -> int:
    """How many go into a chunk: a power of two from 1 to `most`.

    Args:
        call: computes `count` of them, as the chunks will.
        most: a power of two.
    """
    try:
        # A compiled step can't be looked into; as a loop it holds no less.
        with using_engine("loop" if current_engine() == "compile" else current_engine()):
            held = most_held(call)
    except Exception as error:
        if is_out_of_memory(error):
            raise  # or free memory would decide
        # What is wrong with the algorithm is told when it is run in earnest.
        log.warning("one at a time, as what it holds can't be found: %s", error)
        return 1
    fit = AT_ONCE[device_type] * count // max(1, held)
    return 1 << (max(1, min(most, fit)).bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return any(part in said for part in _OF_THE_ALLOCATOR)


def most_held(call: Callable[[], object]) -> int:
    """Bytes of the tensors made by a call that are held at one time, at most."""
    held = _Held()
    # When a reference cycle is collected is chance: what it holds counts until the end.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with held:
            call()
    finally:
        if collecting:
            gc.enable()
    return held.most


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors made under it, each as long as anything holds it.

    Kernels' own workspaces are not seen.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._known: set[int] = set()
        self._foreign: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._leave_out(leaf)
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return made

    def _leave_out(self, tensor: Tensor) -> None:
        """Not to count weights and items, which were there before, when views are made of them."""
        name = _name(tensor)
        if name not in self._known and name not in self._foreign:
            self._foreign.add(name)
            weakref.finalize(tensor.untyped_storage(), self._foreign.discard, name)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = _name(tensor), storage.nbytes()
        if name in self._known or name in self._foreign:  # a view, or changed in place
            return
        self._known.add(name)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._let_go, name, size)

    def _let_go(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size


def _name(tensor: Tensor) -> int:
    """The same for all tensors of one storage, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
