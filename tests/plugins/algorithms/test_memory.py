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
ALWAYS = {"protonet"}
"""Tested in every run; the others where slow tests are."""


def subjects() -> list[Any]:
    return [
        pytest.param(lazy.name, id=lazy.name, marks=[] if lazy.name in ALWAYS else pytest.mark.slow)
        for lazy in ALGORITHMS
    ]


@pytest.mark.parametrize("name", subjects())
def test_ten_thousand_episodes_leave_nothing_behind(name: str) -> None:
    algorithm = subject_of(name).build(PROTOCOL)
    before = (0, 0)
    for batch in range(EPISODES // BATCH):
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


def test_training_keeps_nothing_of_a_step() -> None:
    """Not even until the collector comes: second-order steps make cycles of graphs easily."""
    subject = subject_of("maml")
    algorithm = subject.build(PROTOCOL).train()
    store = ItemStore(subject.training_bank, tasks.IMAGE, torch.device("cpu"))
    feed = EpisodeFeed(TrainingData(store, PROTOCOL), Recipe(meta_batch=2, queries=1), 0, "memory")
    counts = []
    gc.collect()
    gc.disable()
    try:
        for step in range(30):
            _, batch = feed.batch(step)
            algorithm.training_step(batch, context(stage="train"))
            algorithm.zero_grad(set_to_none=True)
            del batch
            counts.append(tensors_alive())
    finally:
        gc.enable()
    assert counts[-1] <= counts[5]


def subject_of(name: str) -> AlgorithmSubject:
    entry = load_registry(strict=True).get("algorithm", name)
    cls = entry.load()
    return AlgorithmSubject(entry, cls, hp=cls.hyperparameters())


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def live() -> tuple[int, int]:
    """How many tensors there are, and how many bytes the process holds."""
    gc.collect()
    return tensors_alive(), psutil.Process().memory_info().rss
