"""Tasks of made-up embeddings for the closed-form heads, and what a head makes of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metabench.api.items import Items, Support, Targets
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead

Lab = Any


class Task:
    """One task in NumPy: features (S, D), labels (S,), queries (Q, D); classes overlap a little."""

    def __init__(self, shots: Sequence[int], size: int = 6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ways = len(shots)
        self.labels = rng.permutation(np.repeat(np.arange(self.ways), shots))
        centres = rng.standard_normal((self.ways, size))
        self.features = centres[self.labels] + rng.standard_normal((len(self.labels), size))
        self.queries = rng.standard_normal((5, size))

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.ways)[self.labels]

    def with_ones(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and queries, each followed by a 1, of which the weight is the bias."""
        both = (self.features, self.queries)
        x, asked = (np.concatenate([part, np.ones((len(part), 1))], axis=1) for part in both)
        return x, asked

    def gram(self) -> np.ndarray:
        return self.features @ self.features.T

    def support(self) -> Support:
        items = Items(torch.from_numpy(self.features)[None])
        return Support(items, Targets(torch.from_numpy(self.labels)[None]), self.ways)


@pytest.fixture
def task() -> Callable[..., Task]:
    return Task


@pytest.fixture
def logits(lab: Lab) -> Callable[..., Tensor]:
    """Logits (Q, ways) of a head on a task's queries, or on other support sets."""

    def of(kind: type[LinearHead], task: Task, support: Support | None = None, **hp: Any) -> Tensor:
        head = lab.double().make(kind, kind.hyperparameters(**hp))
        ctx = lab.context(episodes=1)
        with torch.no_grad():
            state = head.adapt(support or task.support(), ctx)
            asked = torch.from_numpy(task.queries)[None]
            return head.predict(state, Items(asked), ctx)[0]

    return of
