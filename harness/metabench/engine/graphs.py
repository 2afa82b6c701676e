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
from metabench.engine.numerics import generator_states, same_states, set_generators

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


class _Before:
    """What a step may change, as it is now: buffers, attributes, random states; gradients go.

    Of an attribute it is only known which object it is, not what a list, say, holds.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self.algorithm, self.device = algorithm, device
        self.attributes = [(own, dict(own)) for own in map(vars, algorithm.modules())]
        kinds = ("_parameters", "_buffers", "_modules")
        places = [own[kind] for own, _ in self.attributes for kind in kinds]
        self.places = [(own, dict(own)) for own in places]
        self.pointers = [x.data_ptr() for x in self._tensors()]
        self.buffers = [(x, x.clone()) for x in algorithm.buffers()]
        self.random = generator_states()
        self.of_device = torch.cuda.get_rng_state(device)

    def drawn(self) -> bool:
        """Whether random numbers were drawn since."""
        of_device = torch.cuda.get_rng_state(self.device)
        same = same_states(self.random, generator_states())
        return not (same and torch.equal(self.of_device, of_device))

    def placed(self) -> bool:
        """Whether other tensors are in the places of parameters or buffers."""
        # Those that were there are held by this, so no other can have got their memory.
        return self.pointers != [x.data_ptr() for x in self._tensors()]

    def put_back(self) -> None:
        for own, before in (*self.attributes, *self.places):
            own.clear()
            own.update(before)
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
        _without_grads(self.algorithm)
        set_generators(self.random)
        torch.cuda.set_rng_state(self.of_device, self.device)

    def _tensors(self) -> list[Tensor]:
        return [*self.algorithm.parameters(), *self.algorithm.buffers()]


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
        watched, before = WatchedContext(ctx), self._before()
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
        elif before.drawn():
            reason = "it draws random numbers"
        elif before.placed():
            reason = "it puts other tensors in the place of parameters or buffers"
        # In its first step it may set itself up.
        elif self.calls > 1 and (names := _changed(before.attributes)):
            reason = f"it changes its attributes: {', '.join(names)}"
        if not reason:
            return loss
        before.put_back()
        raise NotCapturableError(reason)

    def _capture(self, batch: EpisodeBatch, ctx: Context) -> None:
        """Record the step on static copies of a batch; capturing computes nothing on the device."""
        tensors, rest = flatten(batch)
        self.inputs = [x.clone() for x in tensors]
        static: EpisodeBatch = restore(rest, self.inputs)
        before = self._before()
        _without_grads(self.algorithm)
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                loss = self.algorithm.training_step(static, ctx)
            # The graph writes where these are; whoever steps the optimiser reads there.
            self.made = self._outcome(loss)
        except RuntimeError as error:
            raise NotCapturableError(f"capture failed: {error}") from error
        finally:
            before.put_back()

    def _checked(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """As usual, and the same by the graph."""
        before = self._before()
        replayed = self._replayed(batch).copied()
        before.put_back()
        with self._beside():
            usual = self._outcome(self.algorithm.training_step(batch, ctx))
        if not usual.same(replayed):
            before.put_back()
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

    def _before(self) -> _Before:
        return _Before(self.algorithm, self.stream.device)

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


def _changed(kept: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Names that stand for other objects than they did."""
    names: set[str] = set()
    for now, before in kept:
        either = now.keys() | before.keys()
        names |= {name for name in either if now.get(name) is not before.get(name)}
    return sorted(names)


def _without_grads(algorithm: Algorithm) -> None:
    for parameter in algorithm.parameters():
        parameter.grad = None
