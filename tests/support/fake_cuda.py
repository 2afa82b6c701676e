"""A CUDA device made of the CPU, for what captures graphs: recorded operations, done again.

As on the device, a capture leaves nothing computed, host-side values are frozen in it, and
whatever waits for the device fails in it; a replay recomputes in the places of the capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}
MODES = {"default": 0, "warn": 1, "error": 2}


class FakeCuda:
    """In the place of the functions of `torch.cuda`, see `install`.

    Attributes:
        capturing: whether a capture is going on.
        end_of_capture: raised where a capture ends.
        captures, replays: how many there were.
    """

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.default_generators = (self.random,)
        self.usual = self.current = Stream(torch.device("cuda"))
        self.debug_mode = 0
        self.capturing = False
        self.end_of_capture: Exception | None = None
        self.captures = self.replays = 0
        self._no_waiting = _NoWaiting("called a synchronizing CUDA operation")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        for name in (
            "current_stream",
            "default_generators",
            "get_rng_state",
            "get_sync_debug_mode",
            "graph",
            "is_current_stream_capturing",
            "set_rng_state",
            "set_sync_debug_mode",
            "stream",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def get_rng_state(self, device: torch.device) -> Tensor:
        return self.random.get_state()

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.random.set_state(state)

    def get_sync_debug_mode(self) -> int:
        return self.debug_mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        before, self.debug_mode = self.debug_mode, MODES.get(str(mode), mode)  # type: ignore[assignment]
        if self.debug_mode == 2 and before != 2:
            self._no_waiting.__enter__()
        elif before == 2 and self.debug_mode != 2:
            self._no_waiting.__exit__(None, None, None)

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    @contextmanager
    def graph(self, graph: Graph, stream: Stream) -> Iterator[None]:
        assert not self.capturing
        self.capturing, self.captures = True, self.captures + 1
        try:
            with self.stream(stream), graph.recording:
                yield
        finally:
            self.capturing = False
            graph.recording.undo()
        if self.end_of_capture is not None:
            raise self.end_of_capture


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Graph:
    def __init__(self, device: FakeCuda) -> None:
        self.device, self.recording = device, _Recording()

    @torch.no_grad()
    def replay(self) -> None:
        assert not self.device.capturing
        assert self.recording.tape, "nothing was captured"
        self.device.replays += 1
        for operation in self.recording.tape:
            results = _tensors(operation.function(*operation.args, **operation.kwargs))
            for place, result in zip(operation.made, results, strict=True):
                if place is not None:
                    place.copy_(result)


class Operation(NamedTuple):
    """What was called, and where its new tensors are; None for one that is no new one."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Tensor | None]


class _NoWaiting(TorchDispatchMode):
    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in WAITING:
            raise RuntimeError(self.message)
        return func(*args, **(kwargs or {}))


class _Recording(_NoWaiting):
    """Notes all operations; they are done, so that there are tensors, and then undone."""

    def __init__(self) -> None:
        super().__init__("operation not permitted when stream is capturing")
        self.tape: list[Operation] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.own: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        for x in given:
            if _memory(x) not in self.own | self.before:
                memory = x.untyped_storage()
                self.before[_memory(x)] = memory, memory.clone()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        known = {_memory(x) for x in given}
        made = [None if _memory(x) in known else x.detach() for x in _tensors(result)]
        # What is kept has no graph, but the same memory.
        kept = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        if func._schema.is_mutable or any(x is not None for x in made):
            self.tape.append(Operation(func, *kept, made))
        self.own |= {_memory(x): x for x in made if x is not None}
        return result

    @torch.no_grad()
    def undo(self) -> None:
        """What was there before is as it was; what is new holds nothing yet."""
        for memory, before in self.before.values():
            memory.copy_(before)
        for place in self.own.values():
            place.fill_(torch.nan if place.is_floating_point() else 0)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, Tensor)]


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata
