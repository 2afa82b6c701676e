"""A meta-step task by task: what the whole batch gives at once, whatever the number of threads."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metabench.api.algorithm import Algorithm, Problem
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch, Items, Support, Targets
from metabench.api.recipe import Hyperparameters
from metabench.engine import apart
from metabench.engine.apart import query_shares, sharing_tasks
from metabench.engine.gradient import GradientAlgorithm, GradientHyperparameters
from metabench.engine.modes import using_engine
from metabench.engine.norm import convert
from metabench.engine.numerics import seed_all

torch.set_num_threads(1)  # as a worker has

TASKS, WAYS = 5, 3
ITEM = ItemSpec("vector", (5,))


class Dense(Backbone):
    """Batch norm, and dropout where it is asked for."""

    name = "dense"
    dropout = 0.0

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        self.net = nn.Sequential(
            nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(self.dropout)
        )
        self.feature_dim = 4

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.net(data)
        return out


class Forgetful(Dense):
    dropout = 0.5


class Learner(GradientAlgorithm):
    """Draws one of its inner rates, and notes which threads its loss was taken in."""

    name = "learner"

    def build(self) -> None:
        super().build()
        self.spare = nn.Parameter(torch.ones(2))  # in no loss
        self.seen_by: set[int] = set()

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        self.seen_by.add(threading.get_ident())
        wobble = ctx.rng.uniform(1, dtype=torch.float64).mean()
        return super().training_loss(batch, ctx) * (1 + wobble)


class Apart(Learner):
    tasks_apart = True

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        # Of several tasks the mean, each with its own draw.
        parts = []
        for b in range(len(batch.classes)):
            one = EpisodeBatch(*_rows(batch, b))
            alone = Context(ctx.stage, ctx.rng.only(b), ctx.step, ctx.total, ctx.phase)
            parts.append(Learner.training_loss(self, one, alone))
        return torch.stack(parts).mean()


def _rows(batch: EpisodeBatch, b: int) -> Any:
    support = Support(
        Items(batch.support.items.data[b : b + 1]),
        Targets(batch.support.targets.values[b : b + 1]),
        batch.support.ways,
    )
    queries = Items(batch.queries.data[b : b + 1])
    return (
        support,
        queries,
        Targets(batch.query_targets.values[b : b + 1]),
        batch.classes[b : b + 1],
    )


def make(kind: type[GradientAlgorithm], body: type[Backbone] = Dense, **hp: Any) -> Any:
    torch.manual_seed(0)
    backbone = body(ITEM, Hyperparameters())
    convert(backbone)
    settings = GradientHyperparameters(**{"inner_lr": 0.5, "inner_steps": 2, **hp})
    return kind(backbone, settings, Problem(ITEM, WAYS, 2, WAYS, 10)).double().train()


def episodes(mask: Tensor | None = None) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(3)
    items = torch.randn(TASKS, 6, 5, generator=generator, dtype=torch.float64)
    queries = torch.randn(TASKS, 7, 5, generator=generator, dtype=torch.float64)
    known = torch.arange(6).remainder(WAYS).expand(TASKS, -1)
    asked = torch.randint(WAYS, (TASKS, 7), generator=generator)
    support = Support(Items(items), Targets(known), WAYS)
    classes = torch.arange(WAYS).expand(TASKS, -1)
    return EpisodeBatch(support, Items(queries), Targets(asked, mask), classes)


def context() -> Context:
    return Context("train", EpisodeRandom(bytes(16), list(range(TASKS))), 0, 1)


def stepped(algorithm: Any, batch: EpisodeBatch, threads: int = 1, steps: int = 1) -> list[Tensor]:
    """Loss, gradients and buffers after some steps."""
    found: list[Tensor] = []
    for _ in range(steps):
        algorithm.zero_grad()
        with sharing_tasks(threads):
            found = [algorithm.training_step(batch, context())]
    found += [p.grad for _, p in algorithm.named_parameters() if p.grad is not None]
    return found + [buffer.clone() for buffer in algorithm.buffers()]


def at_once(algorithm: Any, batch: EpisodeBatch) -> list[Tensor]:
    """The same by one backward pass through all tasks."""
    loss = Algorithm.training_step(algorithm, batch, context())
    found = [loss, *(p.grad for p in algorithm.parameters() if p.grad is not None)]
    return found + [buffer.clone() for buffer in algorithm.buffers()]


class Plain(GradientAlgorithm):
    name = "plain"


@pytest.mark.parametrize("option", ["support", "support+1", "running", "batch"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_parts_add_up_to_the_whole(option: str, masked: bool) -> None:
    mask = torch.arange(7) < torch.tensor([[7], [3], [1], [7], [5]]) if masked else None
    batch = episodes(mask)
    found = stepped(make(Plain, batch_norm=option), batch)
    expected = at_once(make(Plain, batch_norm=option), batch)
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("option", ["support", "running"])
def test_threads_change_not_one_bit(option: str) -> None:
    batch = episodes()
    expected = stepped(make(Apart, batch_norm=option), batch, threads=1, steps=3)
    for threads in (2, 3, 16):
        algorithm = make(Apart, batch_norm=option)
        found = stepped(algorithm, batch, threads, steps=3)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


class Clinging(Apart):
    """Keeps a function that holds on to the algorithm itself, which no copy is."""

    def build(self) -> None:
        super().build()
        self.classify = lambda features: self.head(features)  # noqa: PLW0108

    def forward(self, data):  # type: ignore[no-untyped-def]
        return self.classify(self.backbone(data))


def test_what_copies_compute_otherwise_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    batch = episodes()
    expected = stepped(make(Clinging), batch, threads=1, steps=3)
    found = stepped(make(Clinging), batch, threads=2, steps=3)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    [said] = [record.message for record in caplog.records if "not shared" in record.message]
    assert "hold on to the algorithm itself" in said


def test_the_levels_of_forward_mode_are_one_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the whole process's, so `mixed` takes its tasks one after the other."""
    batch, asked = episodes(), []
    usual = apart._parts
    monkeypatch.setattr(apart, "_parts", lambda *args: (asked.append(args[-1]), usual(*args))[1])
    algorithm, other = make(Apart), make(Apart)
    with using_engine("mixed"):
        [found, *_] = stepped(algorithm, batch, threads=3, steps=3)
    assert asked == [1, 1, 1]
    [expected, *_] = stepped(other, batch, threads=1, steps=3)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for name in ("weight", "bias"):
        grads = (getattr(one.head, name).grad for one in (algorithm, other))
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_several_threads_take_tasks(monkeypatch) -> None:
    algorithm, copies = make(Apart), []
    usual = apart._replicas
    monkeypatch.setattr(apart, "_replicas", lambda *args: copies.extend(usual(*args)) or copies)
    stepped(algorithm, episodes(), threads=2, steps=2)
    assert len(copies) == 2
    here = threading.get_ident()
    assert algorithm.seen_by == {here}  # in the first step, which looks for random draws
    assert set().union(*(replica.seen_by for replica in copies)) - {here}


def test_a_replica_has_the_very_parameters_of_the_algorithm() -> None:
    algorithm, batch = make(Apart), episodes()
    stepped(algorithm, batch, threads=2, steps=2)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.mul_(1.1)
    found = stepped(algorithm, batch, threads=2)
    expected = stepped(algorithm, batch, threads=1)
    assert torch.equal(found[0], expected[0])
    # Other parameters in their places, not other values.
    algorithm.head = nn.Linear(4, WAYS).double()
    assert torch.equal(*(stepped(algorithm, batch, threads=n)[0] for n in (1, 2)))


def test_a_loss_that_may_couple_tasks_is_taken_at_once() -> None:
    class Coupled(Plain):
        sizes: list[int]

        def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
            self.sizes.append(len(batch.classes))
            return super().training_loss(batch, ctx).square()

    algorithm = make(Coupled)
    algorithm.sizes = []
    stepped(algorithm, episodes())
    assert algorithm.sizes == [TASKS]


def test_dropout_goes_in_order_whatever_the_threads() -> None:
    batch = episodes()

    def trained(threads: int) -> list[Tensor]:
        algorithm = make(Plain, Forgetful)
        torch.manual_seed(1)
        return stepped(algorithm, batch, threads, steps=3)

    for one, other in zip(trained(1), trained(4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("generator", ["torch", "numpy", "python"])
def test_randomness_that_begins_later_is_taken_in_order(generator: str) -> None:
    draw = {
        "torch": lambda: float(torch.rand(())),
        "numpy": np.random.rand,
        "python": random.random,
    }[generator]

    class Later(Apart):
        draws = False

        def inner_steps(self, ctx: Context) -> int:
            return 1 + int(3 * draw()) if self.draws else 2

    batch = episodes()

    def trained(threads: int) -> list[Tensor]:
        algorithm = make(Later)
        stepped(algorithm, batch, threads)
        algorithm.draws = True
        seed_all("a test")
        return stepped(algorithm, batch, threads, steps=3)

    for one, other in zip(trained(1), trained(3), strict=True):
        assert torch.equal(one, other)


class Counting(Apart):
    """Changes its buffers in all the ways there are."""

    def build(self) -> None:
        super().build()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("other", torch.zeros(()))

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        loss = super().training_loss(batch, ctx)
        self.count += 1
        self.level.copy_(loss.detach())
        self.other = self.other + loss.detach()
        return loss


@pytest.mark.parametrize("threads", [1, 3])
def test_buffers_begin_alike_for_each_task_and_end_as_their_mean(threads: int) -> None:
    algorithm, batch = make(Counting), episodes()
    for step in (1, 2, 3):
        before = float(algorithm.other)
        loss = stepped(algorithm, batch, threads)[0]
        assert int(algorithm.count) == step
        # Each task's loss, which is weighted afterwards.
        torch.testing.assert_close(algorithm.level.double(), loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(float(algorithm.other) - before, float(loss))


def test_a_task_that_fails_leaves_no_other_running() -> None:
    running = []

    class Failing(Apart):
        broken = False

        def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
            running.append(1)
            try:
                if self.broken and ctx.rng._index == [0]:
                    raise ValueError("the first one")
                return super().training_loss(batch, ctx)
            finally:
                running.pop()

    algorithm, batch = make(Failing), episodes()
    stepped(algorithm, batch, threads=2)
    algorithm.broken = True
    with pytest.raises(ValueError, match="the first one"):
        stepped(algorithm, batch, threads=2)
    assert not running


def test_gradients_are_added_to_those_that_are_there() -> None:
    algorithm, batch = make(Plain), episodes()
    stepped(algorithm, batch)
    once = [p.grad.clone() for p in algorithm.parameters()]
    algorithm.training_step(batch, context())
    for parameter, grad in zip(algorithm.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad)


def test_a_task_counts_by_its_queries() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    shares = query_shares(Targets(torch.zeros(2, 3), mask))
    assert shares.tolist() == [0.75, 0.25]
    assert query_shares(Targets(torch.zeros(4, 3))).tolist() == [0.25] * 4
