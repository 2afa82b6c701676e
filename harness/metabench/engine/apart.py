"""A meta-step task by task: one task's graph in memory a thread, tasks shared among threads.

The outer gradient is a mean over tasks, so each task's part of it can be taken as soon as the task
is adapted, which frees its graph; and as no task needs another, several threads can take one each.
The parts are added in the order of the tasks, so the digits don't depend on how many threads there
are.

PyTorch's modules are not safe between threads (`functional_call` puts other tensors in a module's
places for the time of a call), so each thread has a replica of the algorithm: the same parameters,
but buffers, modes and attributes of its own. What a training loss writes anywhere but into buffers
is lost with it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, Targets, one_episode
from metabench.engine.modes import current_engine
from metabench.engine.numerics import (
    generator_states,
    one_thread_a_kernel,
    same_states,
    set_generators,
)

log = logging.getLogger("metabench.train")

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
        drew: whether a global generator was drawn from.
    """

    loss: Tensor
    grads: tuple[Tensor | None, ...]
    buffers: Buffers
    drew: bool


class Whole(NamedTuple):
    """The parts of all tasks: losses, summed gradients, and buffers task by task."""

    losses: list[Tensor]
    grads: list[Tensor | None]
    buffers: list[Buffers]


class _DrewError(Exception):
    """Tasks draw from a global generator, so they must go in order."""


def step_by_task(algorithm: Algorithm, batch: EpisodeBatch, ctx: Context) -> Tensor:
    """Leave in `.grad` the gradient of the mean of the tasks' training losses; return that mean.

    A task counts by its queries. Buffers that the loss changes begin with the same values for each
    task, and end as the mean over the tasks (counts: as the last task leaves them).
    """
    weights = query_shares(batch.query_targets)
    trainable = [p for p in algorithm.parameters() if p.requires_grad]

    def one(module: Algorithm, b: int) -> Part:
        return _part(module, trainable, one_episode(batch, b), _alone(ctx, b), weights[b])

    threads = _threads_for(algorithm, len(weights))
    generators = generator_states()
    try:
        whole = _added(_parts(algorithm, one, len(weights), threads), len(trainable))
    except _DrewError:
        # Which thread drew first was chance. Nothing is changed yet, so from the start.
        _in_order[algorithm] = True
        set_generators(generators)
        whole = _added(_parts(algorithm, one, len(weights), 1), len(trainable))
    else:
        if threads > 1 and algorithm not in _compared:
            with one_thread_a_kernel():
                alone = _added(_parts(algorithm, one, len(weights), 1), len(trainable))
            whole = _agreed(algorithm, whole, alone)
    for parameter, total in zip(trainable, whole.grads, strict=True):
        if total is not None:
            parameter.grad = _sum(parameter.grad, total)
    _keep(algorithm, whole.buffers)
    return torch.stack(whole.losses).sum()


def _agreed(algorithm: Algorithm, shared: Whole, alone: Whole) -> Whole:
    """What the first shared step came to, if that is to the last bit what it comes to alone.

    A function that an algorithm keeps and that holds on to the algorithm itself would compute with
    the original, not with the replica that it was copied into.
    """
    _compared.add(algorithm)
    (ours, one), (theirs, other) = tree_flatten(shared), tree_flatten(alone)
    if one == other and all(map(_equal, ours, theirs)):
        return shared
    log.warning(
        "%s: its tasks are not shared among threads, as copies of it compute something else; does"
        " a function that it keeps hold on to the algorithm itself?",
        algorithm.name,
    )
    _in_order[algorithm] = True
    return alone


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


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
    before = [
        (name, owner, key, value, value._version, value.clone())
        for name, owner, key, value in _buffers_of(module)
    ]
    generators = generator_states()
    with torch.enable_grad():
        loss = module.training_loss(batch, ctx) * weight
        grads = torch.autograd.grad(loss, trainable, allow_unused=True)
    changed = {}
    with torch.no_grad():
        for name, owner, key, value, version, kept in before:
            now = owner._buffers[key]
            if now is value and value._version == version:
                continue
            assert now is not None
            changed[name] = now.clone()
            owner._buffers[key] = value.copy_(kept)
    return Part(loss.detach(), grads, changed, not same_states(generators, generator_states()))


def _parts(
    algorithm: Algorithm, one: Callable[[Algorithm, int], Part], tasks: int, threads: int
) -> Iterator[Part]:
    """The tasks' parts in their order, by so many threads."""
    replicas = _replicas(algorithm, threads) if threads > 1 else []
    if not replicas:
        for b in range(tasks):
            part = one(algorithm, b)
            _in_order[algorithm] = _in_order.get(algorithm, False) or part.drew
            yield part
        return
    free: SimpleQueue[Algorithm] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def work(b: int) -> Part:
        replica = free.get()
        try:
            return one(replica, b)
        finally:
            free.put(replica)

    futures: list[Future[Part]] = []
    try:
        # Helpers of this thread, which adds up, would wait spinning on the others' cores.
        with one_thread_a_kernel():
            pool = _pool(threads)
            futures += [pool.submit(copy_context().run, work, b) for b in range(tasks)]
            for b in range(tasks):
                part, futures[b] = futures[b].result(), Future()  # which lets the part go
                if part.drew:
                    raise _DrewError
                yield part
    finally:
        # Where one failed the others must not go on into whatever comes next.
        wait([future for future in futures if future.running() or not future.cancel()])


def _threads_for(algorithm: Algorithm, tasks: int) -> int:
    threads = min(_threads.get(), tasks)
    # In the first step it is seen whether a task draws from a global generator. What is switched
    # on for this thread only (autocast) would be off in others; the compiler isn't for several, and
    # the levels of forward mode, which `mixed` needs, are the whole process's.
    shared = (
        next(algorithm.parameters()).device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and current_engine() not in ("compile", "mixed")
        and _in_order.get(algorithm) is False
    )
    return threads if shared else 1


_in_order: WeakKeyDictionary[Algorithm, bool] = WeakKeyDictionary()
"""Whether an algorithm's tasks have to go in order: they draw from a global generator (dropout)."""


_compared: WeakSet[Algorithm] = WeakSet()
"""Algorithms of which a shared step was compared with the same step alone."""


def _replicas(algorithm: Algorithm, count: int) -> list[Algorithm]:
    """Copies of the algorithm as it is now with the very same parameters; none if it has no copy.

    A replica that is asked for its gradient must have the same parameters, not equal ones.
    """
    shared = {id(parameter): parameter for parameter in algorithm.parameters()}
    try:
        return [copy.deepcopy(algorithm, dict[int, Any](shared)) for _ in range(count)]
    except Exception as error:
        log.warning("%s: no threads, as it cannot be copied: %s", algorithm.name, error)
        _in_order[algorithm] = True
        return []


def _added(parts: Iterator[Part], trainable: int) -> Whole:
    whole = Whole([], [None] * trainable, [])
    for part in parts:
        whole.losses.append(part.loss)
        whole.buffers.append(part.buffers)
        for i, grad in enumerate(part.grads):
            whole.grads[i] = _sum(whole.grads[i], grad)
    return whole


@torch.no_grad()
def _keep(algorithm: Algorithm, changes: list[Buffers]) -> None:
    """Put what the tasks made of the buffers in their places."""
    for name, _, _, value in _buffers_of(algorithm):
        found = [changed[name] for changed in changes if name in changed]
        if not found:
            continue
        if value.is_floating_point():
            left = [changed.get(name, value) for changed in changes]
            value.copy_(torch.stack(left).mean(0))
        else:
            value.copy_(found[-1])


def _buffers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Each buffer: its whole name, the module that has it, its name there, the tensor."""
    for prefix, owner in module.named_modules():
        for key, value in owner._buffers.items():
            if value is not None:
                yield f"{prefix}.{key}", owner, key, value


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Each on one core: what a thread computes is what the only thread of a worker computes.
    return ThreadPoolExecutor(threads, "task", initializer=lambda: torch.set_num_threads(1))


def _alone(ctx: Context, b: int) -> Context:
    return replace(ctx, rng=ctx.rng.only(b))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
