"""A captured meta-step gives what the usual one gives, or is not taken."""

from __future__ import annotations

import logging
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from captured_twins import Device, Learner, Twins, batch, context
from fake_cuda import FakeCuda
from torch import Tensor

from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, Items
from metabench.engine.graphs import (
    CHECKS,
    MOST_SHAPES,
    WARM_UP,
    Outcome,
    WatchedContext,
    shape_of,
    training_step_of,
)
from metabench.engine.modes import using_engine


def test_a_shape_is_what_a_graph_is_recorded_for() -> None:
    assert shape_of(batch(0)) == shape_of(batch(1))
    others = [batch(0, shots=1), batch(0, ways=3)]
    turned = batch(0)
    data = turned.queries.data.transpose(-1, -2)
    others.append(turned._replace(queries=Items(data)))
    others.append(turned._replace(queries=Items(turned.queries.data.double())))
    assert len({shape_of(one) for one in (turned, *others)}) == 5


def test_what_a_graph_would_freeze_is_noted() -> None:
    ctx = context(3)
    watched = WatchedContext(ctx)
    assert watched.training
    assert (watched.stage, watched.phase) == ("train", "meta")
    assert watched.noted == set()
    assert (watched.step, watched.total) == (3, 100)
    drawn = watched.rng.normal(4)
    assert watched.noted == {"step", "total", "rng"}
    assert torch.equal(ctx.rng.normal(4), drawn)  # it was not drawn for those who come after


def test_results_are_compared_bit_for_bit() -> None:
    one = Outcome(torch.ones(()), [torch.ones(2), None], [torch.zeros(3)])
    kept = one.copied()
    assert one.same(kept)
    one.buffers[0][1] = 1e-30
    assert not one.same(kept)
    assert not kept.same(kept._replace(grads=[None, torch.ones(2)]))


def test_nothing_is_captured_but_on_cuda(world) -> None:
    algorithm = world.make()
    assert training_step_of(algorithm, torch.device("cpu")) == algorithm.training_step


def faked(monkeypatch) -> Device:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return Device("cpu", fake)


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> Device:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        return Device("cuda", None)
    return faked(monkeypatch)


@pytest.fixture
def fake(monkeypatch) -> Device:
    return faked(monkeypatch)


@pytest.fixture
def twins(world, device):
    with using_engine("vmap"):
        yield lambda kind=Learner: Twins(world, device, kind)


@pytest.fixture
def fake_twins(world, fake):
    with using_engine("vmap"):
        yield lambda kind=Learner: Twins(world, fake, kind)


UNTIL_TRUSTED = WARM_UP + CHECKS
USUAL_CALLS = WARM_UP + 1 + CHECKS
"""Of the step itself: in the warm-up, as it is captured, beside the graph."""


def test_replayed_steps_are_the_usual_ones(twins) -> None:
    """On new batches, under weights that an optimiser moves in between."""
    one = twins()
    one.steps(UNTIL_TRUSTED)
    assert one.calls == USUAL_CALLS
    one.steps(5)
    assert one.calls == USUAL_CALLS
    assert one.captured.refused == ""
    # What was returned stays as it was, though each step is computed in the same places.
    usual, replayed = map(torch.stack, one.losses)
    torch.testing.assert_close(replayed, usual, **one.device.tolerance)


def test_the_fake_device_launches_what_it_recorded(fake_twins) -> None:
    one = fake_twins()
    one.steps(WARM_UP)
    assert (one.fake.captures, one.fake.replays) == (0, 0)
    one.steps(CHECKS)
    assert (one.fake.captures, one.fake.replays) == (1, CHECKS)
    one.steps(2)
    assert (one.fake.captures, one.fake.replays) == (1, CHECKS + 2)


class Averaging(Learner):
    """Has a buffer that each step moves in its place."""

    def build(self) -> None:
        super().build()
        self.register_buffer("mean", torch.zeros(()))

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * batch.queries.data.mean())
        return super().training_loss(batch, ctx) * (1 + self.mean)


def test_buffers_are_moved_once_a_step(twins) -> None:
    one = twins(Averaging)
    one.steps(UNTIL_TRUSTED + 3)
    assert (one.calls, one.captured.refused) == (USUAL_CALLS, "")


class OnStream(Learner):
    streams: ClassVar[set[Any]] = set()

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        self.streams.add(torch.cuda.current_stream(torch.device("cuda")))
        return super().training_loss(batch, ctx)


def test_usual_steps_are_on_the_stream_of_the_capture(fake_twins, monkeypatch) -> None:
    monkeypatch.setattr(OnStream, "streams", set())
    one = fake_twins(OnStream)
    one.steps(UNTIL_TRUSTED)
    beside, usual = one.captured.stream, one.fake.usual
    assert OnStream.streams == {beside, usual}  # the plain twin is on the latter
    # Before each step on it, it waits for what made the batch; afterwards the other way round.
    assert beside.waited_for == [usual] * UNTIL_TRUSTED
    assert usual.waited_for == [beside] * UNTIL_TRUSTED
    assert one.fake.current is usual


def test_another_shape_has_a_graph_of_its_own(twins) -> None:
    one = twins()
    for number in range(2 * (UNTIL_TRUSTED + 2)):
        one.step(shots=1 + number % 2)
    assert (len(one.captured.seen), one.captured.refused) == (2, "")
    assert one.calls == 2 * USUAL_CALLS


class Annealed(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * (1 - ctx.step / ctx.total)


class Drawing(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * (1 + ctx.rng.uniform(1).mean())


class DrawingOnHost(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * float(torch.rand(()) + random.random())


class DrawingOnDevice(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss, generator = super().training_loss(batch, ctx), torch.cuda.default_generators[0]
        return loss * torch.rand((), generator=generator, device=loss.device)


class DrawingFromNumpy(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) * (1 + np.random.rand())


class Waiting(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss = super().training_loss(batch, ctx)
        return loss if float(loss.detach()) < 1e6 else loss * 0


class Replacing(Averaging):
    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        # Twice: the second may be given the memory of the one before the first.
        self.mean = self.mean + 0.5
        self.mean = self.mean + 0.5
        return super().training_loss(batch, ctx)


class Growing(Averaging):
    def build(self) -> None:
        super().build()
        self.register_buffer("all_means", torch.zeros(1))

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        self.all_means = torch.cat([self.all_means, batch.queries.data.mean()[None]])
        return super().training_loss(batch, ctx) * (1 + self.all_means.mean())


class Counting(Averaging):
    count = 0

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        self.count += 1
        return super().training_loss(batch, ctx) * (1 + self.count)


REFUSED = {
    Annealed: "reads ctx.step, ctx.total",
    Drawing: "reads ctx.rng",
    DrawingOnHost: "draws random numbers",
    DrawingOnDevice: "draws random numbers",
    DrawingFromNumpy: "draws random numbers",
    Waiting: "waits for the device",
    Replacing: "puts other tensors in the place",
    Growing: "puts other tensors in the place",
    Counting: "changes its attributes: count",
}


@pytest.mark.parametrize(("kind", "why"), REFUSED.items(), ids=[kind.__name__ for kind in REFUSED])
def test_what_cannot_be_captured_is_run_as_usual(twins, kind, why: str, caplog) -> None:
    one = twins(kind)
    with caplog.at_level(logging.WARNING):
        one.steps(UNTIL_TRUSTED + 2)
    assert why in one.captured.refused
    assert [line for line in caplog.messages if "not captured" in line] == [
        f"learner: meta-steps are not captured: {one.captured.refused}"
    ]
    if one.device.fake is not None:
        assert (one.fake.captures, one.fake.debug_mode) == (0, 0)


class Caching(Averaging):
    """Sets itself up in its first step, and never again."""

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = 0.5
        return super().training_loss(batch, ctx) * self.scale


def test_what_the_first_step_sets_up_is_no_obstacle(twins) -> None:
    one = twins(Caching)
    one.steps(UNTIL_TRUSTED + 2)
    assert (one.calls, one.captured.refused) == (USUAL_CALLS, "")


class Tempered(Averaging):
    """Its loss hangs on what others set, which a graph keeps as it was."""

    temperature = 1.0

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        return super().training_loss(batch, ctx) / self.temperature


def test_a_recorded_step_with_other_bits_is_not_taken(twins, caplog) -> None:
    one = twins(Tempered)
    one.steps(WARM_UP + CHECKS - 1)
    one.plain.temperature = one.twin.temperature = 2.0
    assert one.captured.refused == ""
    one.steps(3)
    assert "other bits" in one.captured.refused
    assert "other bits" in caplog.text


class Deviating(Averaging):
    """Another step, when captured, in its loss or in the buffer or in what it draws."""

    way = ""

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss = super().training_loss(batch, ctx)
        if torch.cuda.is_current_stream_capturing():
            self.count = 1
            torch.rand(())
            np.random.rand()
            if self.way == "loss":
                return loss * 2
            with torch.no_grad():
                self.mean.add_(1)
        return loss + 0 * float(hasattr(self, "count"))


@pytest.mark.parametrize("way", ["loss", "buffer"])
def test_nothing_is_left_of_a_capture_that_is_not_taken(twins, way: str) -> None:
    one = twins(Deviating)
    one.plain.way = one.twin.way = way
    one.steps(UNTIL_TRUSTED + 2)
    assert "other bits" in one.captured.refused
    assert not hasattr(one.twin, "count")


class Rare(Averaging):
    """Waits for the device, but not in its first steps."""

    strict = False

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss = super().training_loss(batch, ctx)
        if self.strict:
            torch.rand(())
            return loss * float(loss.detach())
        return loss


def test_where_capture_fails_steps_are_as_usual(twins, caplog) -> None:
    one = twins(Rare)
    one.steps(WARM_UP)
    one.plain.strict = one.twin.strict = True
    one.steps(4)
    assert "capture failed: " in one.captured.refused
    assert one.captured.refused in caplog.text


@pytest.mark.parametrize(
    "error", [RuntimeError("the capture was invalidated"), torch.OutOfMemoryError("no memory")]
)
def test_where_the_end_of_a_capture_fails_steps_are_as_usual(fake_twins, error) -> None:
    """A graph needs memory of its own; the usual step does without."""
    one = fake_twins(Averaging)
    one.fake.end_of_capture = error
    one.steps(UNTIL_TRUSTED + 2)
    assert one.captured.refused == f"capture failed: {error}"
    assert one.fake.replays == 0


class Large(Averaging):
    fits = True

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        if not self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().training_loss(batch, ctx)


def test_without_memory_the_step_fails_and_is_not_tried_again(fake_twins) -> None:
    one = fake_twins(Large)
    one.step()
    one.twin.fits = False
    with pytest.raises(torch.OutOfMemoryError):
        one.captured(batch(1), context(1))
    assert (one.calls, one.captured.refused, one.fake.debug_mode) == (2, "", 0)


class Broken(Averaging):
    broken = False

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        if self.broken:
            raise RuntimeError("shapes cannot be multiplied")
        return super().training_loss(batch, ctx)


def test_a_step_that_fails_by_itself_fails_as_usual(fake_twins) -> None:
    one = fake_twins(Broken)
    one.step()
    one.twin.broken = True
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        one.captured(batch(1), context(1))


def test_more_shapes_than_memory_is_given_to_are_not_captured(twins) -> None:
    one = twins()
    one.steps(UNTIL_TRUSTED)
    for shots in range(3, MOST_SHAPES + 2):
        one.step(shots=shots)
    assert one.captured.refused == ""
    one.step(shots=1)
    assert "shapes" in one.captured.refused
    assert one.captured.seen == {}
    calls = one.calls
    one.step()  # nor one that was
    assert one.calls == calls + 1
