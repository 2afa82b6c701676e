"""MAML's meta-step against higher, torchopt and learn2learn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import EpisodeBatch
from metabench.engine.apart import sharing_tasks
from metabench.engine.feed import EpisodeFeed
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.modes import EngineName, resolve_engine, using_engine
from metabench.engine.numerics import one_thread_a_kernel
from metabench.testing.peers.fair import check_close, compared, fastest
from metabench.testing.peers.inner_loops import Make, MetaStep, present
from metabench.testing.peers.networks import (
    INNER_LR,
    default_layout,
    documented,
    in_float64,
    made_up_bank,
    meta_batch,
    our_maml,
    twin,
)
from metabench.testing.peers.rows import NotMeasuredError, Row, Setting, versioned

STEPS, TASKS, QUICK_TASKS = 5, 16, 4
NO_PEER = "none of higher, torchopt and learn2learn is installed: pip install 'metabench[peers]'"

EXACT, SINGLE, COMPILED = 1e-8, 2e-3, 0.1
"""Allowed difference of meta-gradients, as a fraction of their norm: float64, float32, and float32
of compiled code.

A max-pool that takes another pixel for another rounding moves the gradient of made-up images by
.02 to .04 (seen between 1 thread and 2 of the same code), and compiled kernels round by themselves.
"""

PeersNetwork = Callable[[GradientAlgorithm], nn.Sequential]


def our_step(
    algorithm: GradientAlgorithm, feed: EpisodeFeed, engine: EngineName, threads: int = 1
) -> MetaStep:
    """Ours: what the engine calls in training; `threads` share the tasks, as `--threads` has it."""
    device = feed.store.device

    def step(batch: EpisodeBatch) -> None:
        algorithm.zero_grad()
        numbers = list(range(len(batch.query_targets.values)))
        ctx = Context("train", EpisodeRandom(feed.key, numbers, device), 0, 1)
        with using_engine(engine), sharing_tasks(threads):
            algorithm.training_step(batch, ctx)

    return step


def check_gradients(
    algorithm: GradientAlgorithm,
    feed: EpisodeFeed,
    batch: EpisodeBatch,
    engine: EngineName,
    make: Make,
    steps: int,
    name: str,
    peers_network: PeersNetwork = documented,
    threads: int = 1,
) -> None:
    """Raise DifferentResultsError unless both leave the same meta-gradient, in float64 and float32.

    In float32 the peer has our network, and both have one thread a kernel: others round otherwise.
    """
    of_float32 = COMPILED if engine == "compile" else SINGLE
    for precision, tolerance in (("float64", EXACT), ("float32", of_float32)):
        doubled = precision == "float64"
        model = copy.deepcopy(algorithm)
        if doubled:
            model.double()
        theirs_is = peers_network if doubled else twin
        network = theirs_is(model)
        here = in_float64(batch) if doubled else batch
        leaves = list(network.parameters())  # some peers put others in their places
        step = our_step(model, feed, engine, threads)
        given = default_layout(here) if theirs_is is documented else here
        with one_thread_a_kernel():
            step(here)
            step(here)  # in the first one no tasks are shared
            make(network, INNER_LR, steps, algorithm.order)(given)
        ours = [p.grad for p in model.parameters() if p.grad is not None]
        theirs = [p.grad for p in leaves if p.grad is not None]
        check_close(f"meta-gradients of {engine} and {name}, {precision}", ours, theirs, tolerance)


def meta_step(order: int, peers_network: PeersNetwork = documented) -> Callable[[Setting], Row]:
    """A meta-step of 16 tasks, 5 inner steps, on conv4-64.

    Args:
        peers_network: what the peer is given: the network as its examples write it, or ours.
    """

    def measure(setting: Setting) -> Row:
        peers = present()
        if not peers:
            raise NotMeasuredError(NO_PEER)
        tasks = setting.count(TASKS, QUICK_TASKS)
        bank = made_up_bank()
        feed, batch = meta_batch(bank, tasks, setting.device)
        given = default_layout(batch) if peers_network is documented else batch
        algorithm = our_maml(bank, order, STEPS, setting.device).train()
        threads = setting.threads if setting.device == "cpu" else 1
        engines = [resolve_engine(asked, setting.device, order) for asked in setting.engines]
        for number, (name, make) in enumerate(peers.items()):
            for engine in engines if number == 0 else engines[:1]:
                check_gradients(
                    algorithm, feed, batch, engine, make, STEPS, name, peers_network, threads
                )
        ours: dict[str, Callable[[], object]] = {
            engine: _synchronised(our_step(algorithm, feed, engine, threads), batch, setting.device)
            for engine in engines
        }
        theirs = {
            name: _synchronised(
                make(peers_network(algorithm), INNER_LR, STEPS, order), given, setting.device
            )
            for name, make in peers.items()
        }
        mine, best = fastest(ours), fastest(theirs)
        kind = {1: "first", 2: "second"}[order]
        shared = f"{threads} threads" if mine == "loop" else "1 thread"
        whose = "" if peers_network is documented else ", the peer on our network and layout"
        work = (
            f"MAML {kind} order: a meta-step of {tasks} tasks, conv4-64, 28x28, 5w1s15q, "
            f"{STEPS} inner steps{whose} (engine {mine}, tasks on {shared}) [s]"
        )
        blocks = setting.blocks_of(10)
        return compared(work, ours[mine], theirs[best], versioned(best), setting, blocks)

    return measure


def _synchronised(step: MetaStep, batch: EpisodeBatch, device: str) -> Callable[[], object]:
    def whole() -> None:
        step(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return whole
