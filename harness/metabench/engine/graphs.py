"""A meta-step as a CUDA graph: recorded once for a shape, then launched as a whole.

Unmeasured, and never run on a device by those who wrote it: so nothing chooses it but a user who
asks for it by name, and it trusts itself only after the fact. PyTorch's conditions for capture
(its notes on CUDA graphs) are looked for in steps that are run as usual; then a recorded step has
to give the same bits as the usual one on other batches under other weights. Until it has, and for
good where it doesn't, the usual step is what counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context
from metabench.api.items import EpisodeBatch
from metabench.engine.lift import flatten, restore

log = logging.getLogger("metabench.train")

WARM_UP = 3
"""Steps of a shape as usual, on the stream of the capture: libraries set themselves up in them."""
CHECKS = 2
"""Batches on which the recorded step has to give the usual one's bits."""
MOST_SHAPES = 4
"""Each has memory of its own; with more shapes than that nothing is static here."""

Step = Callable[[EpisodeBatch, Context], Tensor]
Shape = tuple[Any, ...]


class NotCapturableError(Exception):
    """Why a step can't be a graph."""


class WatchedContext(Context):
    """A context that notes what is read of it: a graph would keep what it was at the capture."""

    READ = frozenset({"rng", "step", "total"})

    def __init__(self, ctx: Context) -> None:
        # The step may have to be done once more, which then draws what it would have drawn.
        super().__init__(**{**vars(ctx), "rng": copy(ctx.rng)})
        self.noted: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in WatchedContext.READ and "noted" in vars(self):
            self.noted.add(name)
        return super().__getattribute__(name)


def shape_of(batch: EpisodeBatch) -> Shape:
    """What has to be the same for a recorded step to take a batch."""
    tensors, _ = flatten(batch)
    return (batch.support.ways, *((x.shape, x.stride(), x.dtype) for x in tensors))


def training_step_of(algorithm: Algorithm, device: torch.device) -> Step:
    """The algorithm's training step, captured where that can be: on CUDA."""
    if device.type != "cuda":
        return algorithm.training_step
    return CapturedStep(algorithm, device)


class CapturedStep:
    """`training_step` of an algorithm, from a graph once that is known to be the same.

    The gradients are left in the parameters' `.grad`, as by the step itself.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self.algorithm, self.device = algorithm, device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.seen: dict[Shape, _OneShape] = {}
        self.refused = ""

    def __call__(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        if self.refused:
            return self.algorithm.training_step(batch, ctx)
        one = self.seen.setdefault(shape_of(batch), _OneShape(self.algorithm, self.stream))
        try:
            if len(self.seen) > MOST_SHAPES:
                raise NotCapturableError(f"its batches have more than {MOST_SHAPES} shapes")
            return one.step(batch, ctx)
        except NotCapturableError as error:
            self.refused = str(error)
            self.seen.clear()
            log.warning("%s: meta-steps are not captured: %s", self.algorithm.name, error)
        return self.algorithm.training_step(batch, ctx)


class Outcome(NamedTuple):
    """What a step leaves: its loss, the gradients, the buffers."""

    loss: Tensor
    grads: list[Tensor | None]
    buffers: list[Tensor]

    def copied(self) -> Outcome:
        grads = [g if g is None else g.clone() for g in self.grads]
        return Outcome(self.loss.clone(), grads, [b.clone() for b in self.buffers])

    def same(self, other: Outcome) -> bool:
        """Bit for bit."""
        ours = [self.loss, *self.grads, *self.buffers]
        theirs = [other.loss, *other.grads, *other.buffers]
        return all(
            b is None if a is None else b is not None and torch.equal(a, b)
            for a, b in zip(ours, theirs, strict=True)
        )


class _OneShape:
    """The graph for batches of one shape: warmed up, captured, checked, then trusted."""

    def __init__(self, algorithm: Algorithm, stream: torch.cuda.Stream) -> None:
        self.algorithm, self.stream = algorithm, stream
        self.calls = 0
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: list[Tensor] = []
        self.made: Outcome | None = None

    def step(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        number, self.calls = self.calls, self.calls + 1
        if number < WARM_UP:
            return self._looked_at(batch, ctx)
        if number == WARM_UP:
            self._capture(batch, ctx)
        if number < WARM_UP + CHECKS:
            return self._checked(batch, ctx)
        return self._replayed(batch).loss.clone()

    def _looked_at(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """As usual, and refused if it does what a graph can't repeat. Nothing is done twice."""
        watched, random = WatchedContext(ctx), self._random()
        places = [x.data_ptr() for x in self._tensors()]
        kept = self._buffers_kept()
        try:
            with self._beside(), no_waiting():
                loss = self.algorithm.training_step(batch, watched)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = f"it waits for the device: {error}"
        else:
            reason = ""
        if watched.noted:
            reason = f"it reads ctx.{', ctx.'.join(sorted(watched.noted))}"
        elif not all(map(torch.equal, random, self._random())):
            reason = "it draws random numbers"
        elif places != [x.data_ptr() for x in self._tensors()]:
            reason = "it puts other tensors in the place of parameters or buffers"
        if not reason:
            return loss
        self._put_back(kept)
        self._without_grads()
        torch.set_rng_state(random[0])
        torch.cuda.set_rng_state(random[1], self.stream.device)
        raise NotCapturableError(reason)

    def _capture(self, batch: EpisodeBatch, ctx: Context) -> None:
        """Record the step on static copies of a batch; capturing computes nothing."""
        tensors, rest = flatten(batch)
        self.inputs = [x.clone() for x in tensors]
        static: EpisodeBatch = restore(rest, self.inputs)
        self._without_grads()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                loss = self.algorithm.training_step(static, ctx)
        except RuntimeError as error:
            self._without_grads()
            raise NotCapturableError(f"capture failed: {error}") from error
        # The graph writes where these are; whoever steps the optimiser reads there.
        self.made = self._outcome(loss)
        self._without_grads()

    def _checked(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """As usual, and the same by the graph."""
        kept = self._buffers_kept()
        replayed = self._replayed(batch).copied()
        self._put_back(kept)
        self._without_grads()
        with self._beside():
            usual = self._outcome(self.algorithm.training_step(batch, ctx))
        if not usual.same(replayed):
            self._put_back(kept)
            self._without_grads()
            raise NotCapturableError("the recorded step gives other bits than the usual one")
        return usual.loss

    def _replayed(self, batch: EpisodeBatch) -> Outcome:
        assert self.made is not None
        for static, x in zip(self.inputs, flatten(batch)[0], strict=True):
            static.copy_(x, non_blocking=True)
        self.graph.replay()
        for parameter, grad in zip(self.algorithm.parameters(), self.made.grads, strict=True):
            parameter.grad = grad
        return self.made

    def _outcome(self, loss: Tensor) -> Outcome:
        grads = [parameter.grad for parameter in self.algorithm.parameters()]
        return Outcome(loss, grads, list(self.algorithm.buffers()))

    def _random(self) -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.stream.device)

    def _tensors(self) -> list[Tensor]:
        return [*self.algorithm.parameters(), *self.algorithm.buffers()]

    def _buffers_kept(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.algorithm.buffers()]

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor]) -> None:
        for buffer, before in zip(self.algorithm.buffers(), kept, strict=True):
            buffer.copy_(before)

    def _without_grads(self) -> None:
        for parameter in self.algorithm.parameters():
            parameter.grad = None

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream of the capture: autograd's nodes remember on which they were made."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Operations that wait for the device raise RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
