"""A meta-step task by task: one task's graph in memory, and tasks shared among threads.

The outer gradient is a mean over tasks, so each task's part of it can be taken as soon as the task
is adapted, which frees its graph; and as no task needs another, several threads can take one each.
The parts are added in the order of the tasks, so the digits don't depend on how many threads there
are.

PyTorch's modules are not safe between threads (`functional_call` puts other tensors in a module's
places for the time of a call), so each thread has a replica of the algorithm: the same parameters,
but buffers and modes of its own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import replace
from queue import SimpleQueue
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, Targets, tree_map
from metabench.errors import PluginError

Buffers = dict[str, Tensor]

_threads: ContextVar[int] = ContextVar("threads", default=1)


@contextmanager
def sharing_tasks(threads: int) -> Iterator[None]:
    """Share the tasks of each meta-step among so many threads of one core each, on the CPU."""
    before = _threads.set(threads)
    try:
        yield
    finally:
        _threads.reset(before)


class Part(NamedTuple):
    """What one task adds to a meta-step.

    Attributes:
        loss: its share of the loss.
        grads: of the loss, by the trainable parameters in their order; None: not used.
        buffers: those that it changed, as it left them.
        drew: whether PyTorch's global generator was drawn from.
    """

    loss: Tensor
    grads: tuple[Tensor | None, ...]
    buffers: Buffers
    drew: bool


def step_by_task(algorithm: Algorithm, batch: EpisodeBatch, ctx: Context) -> Tensor:
    """Leave in `.grad` the gradient of the mean of the tasks' training losses; return that mean.

    A task counts by its queries. Buffers that the loss changes in place (running averages) begin
    with the same values for each task, and end as the mean over the tasks.
    """
    weights = query_shares(batch.query_targets)
    trainable = [p for p in algorithm.parameters() if p.requires_grad]

    def one(module: Algorithm, b: int) -> Part:
        return _part(module, trainable, _task(batch, b), _alone(ctx, b), weights[b])

    tasks = len(weights)
    totals: list[Tensor | None] = [None] * len(trainable)
    losses, buffers = [], []
    for part in _parts(algorithm, one, tasks):
        losses.append(part.loss)
        buffers.append(part.buffers)
        totals = [_sum(total, grad) for total, grad in zip(totals, part.grads, strict=True)]
    for parameter, total in zip(trainable, totals, strict=True):
        if total is not None:
            parameter.grad = _sum(parameter.grad, total)
    with torch.no_grad():
        own = dict(algorithm.named_buffers())
        for name in buffers[0]:
            own[name].copy_(torch.stack([after[name] for after in buffers]).mean(0))
    return torch.stack(losses).sum()


def query_shares(targets: Targets) -> Tensor:
    """(B,) float64, each task's share of all queries that are not padding."""
    if targets.mask is None:
        counts = torch.ones(len(targets.values), dtype=torch.float64, device=targets.values.device)
    else:
        counts = targets.mask.flatten(1).sum(1, dtype=torch.float64)
    return counts / counts.sum()


def _part(
    module: Algorithm,
    trainable: Sequence[Tensor],
    batch: EpisodeBatch,
    ctx: Context,
    weight: Tensor,
) -> Part:
    before = {name: (value, value._version) for name, value in module.named_buffers()}
    kept = {name: value.clone() for name, (value, _) in before.items() if value.is_floating_point()}
    generator = torch.get_rng_state()
    with torch.enable_grad():
        loss = module.training_loss(batch, ctx) * weight
        grads = torch.autograd.grad(loss, trainable, allow_unused=True)
    after = {}
    with torch.no_grad():
        for name, (value, version) in before.items():
            if value._version != version and name in kept:
                after[name] = value.clone()
                value.copy_(kept[name])
    drew = not torch.equal(generator, torch.get_rng_state())
    return Part(loss.detach(), grads, after, drew)


def _parts(
    algorithm: Algorithm, one: Callable[[Algorithm, int], Part], tasks: int
) -> Iterator[Part]:
    """The tasks' parts in their order, by as many threads as were asked for."""
    crew = _crew_of(algorithm)
    device = next(algorithm.parameters()).device
    threads = min(_threads.get(), tasks)
    # What is switched on for this thread only (autocast) would be off in the others.
    alone = threads == 1 or device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if alone or crew.draws is not False:
        for b in range(tasks):
            part = one(algorithm, b)
            crew.draws = crew.draws or part.drew
            yield part
        return
    replicas: SimpleQueue[Algorithm] = SimpleQueue()
    for replica in crew.replicas(algorithm, threads):
        replicas.put(replica)

    def work(b: int) -> Part:
        replica = replicas.get()
        try:
            return one(replica, b)
        finally:
            replicas.put(replica)

    contexts = [copy_context() for _ in range(tasks)]
    with _one_core():
        for part in _pool(threads).map(lambda b: contexts[b].run(work, b), range(tasks)):
            if part.drew:
                # Which thread drew first is chance, and the same run would give other digits.
                raise PluginError(
                    f"{algorithm.name} draws from PyTorch's global generator in some steps only",
                    "draw from ctx.rng, or run with --threads 1",
                )
            yield part


@contextmanager
def _one_core() -> Iterator[None]:
    """Add up on one core: helpers of this thread would wait spinning on the others' cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew:
    """What is known of an algorithm's tasks, and its replicas.

    Attributes:
        draws: whether a task draws from the global generator (dropout does), so that tasks have to
            go in order; None: no task was seen yet.
    """

    def __init__(self) -> None:
        self.draws: bool | None = None
        self._replicas: list[Algorithm] = []
        self._parameters: list[int] = []

    def replicas(self, algorithm: Algorithm, count: int) -> list[Algorithm]:
        """Modules with the algorithm's parameters, in its mode, with its buffers' values."""
        shared = {id(parameter): parameter for parameter in algorithm.parameters()}
        if self._parameters != list(shared):  # somebody put other parameters in their places
            self._replicas, self._parameters = [], list(shared)
        while len(self._replicas) < count:
            # A replica that is asked for its gradient must have the very same parameters.
            self._replicas.append(copy.deepcopy(algorithm, cast("dict[int, object]", dict(shared))))
        chosen = self._replicas[:count]
        for replica in chosen:
            replica.train(algorithm.training)
            with torch.no_grad():
                for mine, theirs in zip(replica.buffers(), algorithm.buffers(), strict=True):
                    mine.copy_(theirs)
        return chosen


_crews: WeakKeyDictionary[Algorithm, _Crew] = WeakKeyDictionary()


def _crew_of(algorithm: Algorithm) -> _Crew:
    return _crews.setdefault(algorithm, _Crew())


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Each on one core: what a thread computes is what the only thread of a worker computes.
    return ThreadPoolExecutor(threads, "task", initializer=lambda: torch.set_num_threads(1))


def _task(batch: EpisodeBatch, b: int) -> EpisodeBatch:
    one: EpisodeBatch = tree_map(lambda x: x[b : b + 1] if torch.is_tensor(x) else x, batch)
    return one


def _alone(ctx: Context, b: int) -> Context:
    return replace(ctx, rng=ctx.rng.only(b))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
