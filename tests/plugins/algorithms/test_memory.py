"""Memory does not grow, however many episodes an algorithm has met."""

from __future__ import annotations

import gc
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from metabench.api.recipe import Recipe
from metabench.engine.feed import EpisodeFeed, TrainingData
from metabench.engine.gather import ItemStore
from metabench.episodes.protocol import Protocol
from metabench.plugins import load_registry
from metabench.testing.conformance import tasks
from metabench.testing.conformance.subject import AlgorithmSubject, context, episodes, predictions
from metabench_plugins import ALGORITHMS

EPISODES = 10_000
BATCH = 50
WARM = 40
"""Batches before the first look: allocators and caches fill."""
PROTOCOL = Protocol(ways=2, shots=1, queries=1, episodes=2)
GROWTH = 12 * 2**20
"""Bytes that a process may gain by an allocator's whims; 10,000 states of a network take more."""
ALWAYS = {"protonet": EPISODES, "anil": 4_000}
"""Tested in every run, on so many episodes; all on all of them where slow tests are."""
STEPS, WARM_STEPS = 60, 10
"""Of training, and before the first look."""
SECOND_ORDER = ("maml", "metagrad")
SLOW_SECOND_ORDER = ("cavia", "imaml", "maml++")


def subjects() -> list[Any]:
    always = [pytest.param(name, count, id=name) for name, count in ALWAYS.items()]
    others = [lazy.name for lazy in ALGORITHMS if ALWAYS.get(lazy.name) != EPISODES]
    return always + [
        pytest.param(name, EPISODES, id=f"{name}-{EPISODES}", marks=pytest.mark.slow)
        for name in others
    ]


def second_order() -> list[Any]:
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW_SECOND_ORDER]
    return [*SECOND_ORDER, *slow]


@pytest.mark.parametrize(("name", "count"), subjects())
def test_ten_thousand_episodes_leave_nothing_behind(name: str, count: int) -> None:
    algorithm = subject_of(name).build(PROTOCOL)
    before = (0, 0)
    for batch in range(count // BATCH):
        if batch == WARM:
            before = live()
        numbers = range(batch * BATCH, (batch + 1) * BATCH)
        found = episodes(numbers, PROTOCOL)
        predictions(algorithm, found.support, found.queries, numbers)
        del found
    tensors, held = live()
    assert tensors <= before[0]
    assert held - before[1] < GROWTH


def test_the_count_sees_what_is_kept() -> None:
    algorithm = subject_of("protonet").build(PROTOCOL)
    before = live()
    kept = []
    for number in range(3):
        found = episodes([number], PROTOCOL)
        kept.append(predictions(algorithm, found.support, found.queries, [number]))
    assert live()[0] >= before[0] + len(kept)


@pytest.mark.parametrize("name", second_order())
def test_training_keeps_nothing_of_a_step(name: str) -> None:
    """Not even until the collector comes: second-order steps make cycles of graphs easily.

    Tensors that a graph has saved are no Python objects, so the bytes are looked at too.
    """
    subject = subject_of(name)
    algorithm = subject.build(PROTOCOL).train()
    store = ItemStore(subject.training_bank, tasks.IMAGE, torch.device("cpu"))
    feed = EpisodeFeed(TrainingData(store, PROTOCOL), Recipe(meta_batch=2, queries=1), 0, "memory")
    counts, held = [], []
    gc.collect()
    gc.disable()
    try:
        for step in range(STEPS):
            _, batch = feed.batch(step)
            algorithm.training_step(batch, context(stage="train"))
            algorithm.zero_grad(set_to_none=True)
            del batch
            counts.append(tensors_alive())
            held.append(bytes_held())
    finally:
        gc.enable()
    assert counts[-1] <= counts[WARM_STEPS]
    assert held[-1] - held[WARM_STEPS] < GROWTH


def subject_of(name: str) -> AlgorithmSubject:
    entry = load_registry(strict=True).get("algorithm", name)
    cls = entry.load()
    return AlgorithmSubject(entry, cls, hp=cls.hyperparameters())


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def bytes_held() -> int:
    return int(psutil.Process().memory_info().rss)


def live() -> tuple[int, int]:
    """How many tensors there are, and how many bytes the process holds."""
    gc.collect()
    return tensors_alive(), bytes_held()
