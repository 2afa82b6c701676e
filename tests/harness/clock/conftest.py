"""A clock that stands still but for what algorithms take, and small trials of made-up items."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.recipe import Hyperparameters, Recipe
from metabench.clock import measure as measuring
from metabench.clock import timer
from metabench.clock.peak import Peak
from metabench.engine.build import Blueprint
from metabench.engine.trial import Trial
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol

IMAGE = ItemSpec("image", (1, 4, 4))
PROTOCOL = Protocol(ways=3, shots=2, queries=4)


class Ticking:
    """A clock and a record of who called it.

    Attributes:
        now: seconds.
        took: seconds of each call, by its name.
        calls: name and shape of the items of each call.
        process: collector on, gradients on, threads and model in training, at each call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.took: dict[str, list[float]] = {}
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.process: set[tuple[bool, bool, int, bool]] = set()

    def call(self, name: str, module: torch.nn.Module, data: torch.Tensor) -> None:
        """100 s at first, then thousandths that vary; predicting takes three times as long."""
        took = self.took.setdefault(name, [])
        seconds = 100.0 if not took else (len(took) * 7 % 17 + 5) / 1000
        took.append({"predict": 3 * seconds, "embed": 1.0}.get(name, seconds))
        self.now += took[-1]
        self.calls.append((name, tuple(data.shape)))
        state = gc.isenabled(), torch.is_grad_enabled(), torch.get_num_threads(), module.training
        self.process.add(state)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Ticking:
    """The clock that every reading is taken from; the machine's peak is what a fast one has."""
    clockwork = Ticking()
    monkeypatch.setattr(timer, "now", lambda: round(clockwork.now * 1e9))
    monkeypatch.setattr(measuring, "measured_peak", lambda *asked: Peak(1e11, "convolution"))
    return clockwork


TrialOf = Callable[..., tuple[Trial, Algorithm]]


@pytest.fixture
def trial_of() -> TrialOf:
    """A trial of an algorithm class, and the algorithm built, of made-up items in five classes."""

    def trial(
        algorithm: type[Algorithm],
        recipe: Recipe | None = None,
        backbone: type[Backbone] | None = None,
    ) -> tuple[Trial, Algorithm]:
        hp = algorithm.hyperparameters()
        blueprint = Blueprint(
            algorithm, hp, backbone or Flat, Hyperparameters(), recipe or Recipe(), PROTOCOL, 0
        )
        banks = {split: _bank(split, seed) for seed, split in enumerate(("train", "test"))}
        made = Trial(blueprint, IMAGE, banks, torch.device("cpu"))
        return made, made.build()

    return trial


def _bank(split: str, seed: int) -> ClassBank:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (5 * 8, *IMAGE.shape), dtype=np.uint8)
    names = tuple(f"{split}-{letter}" for letter in "abcde")
    return ClassBank(data, np.arange(6) * 8, names, "made up", split)


class Flat(Backbone):
    """Pixels as they are."""

    name = "flat"
    feature_dim = 16

    def forward(self, data: Any) -> Any:
        return data.flatten(1)


class Linear(Algorithm):
    """One linear layer and prototypes: something small whose arithmetic is known."""

    name = "linear"
    family = "metric"
    reference = "none"
    summary = "For tests."

    def build(self) -> None:
        self.layer = torch.nn.Linear(16, 8)

    def embed(self, items: Any) -> Any:
        return self.layer(self.backbone(items.data.flatten(0, 1))).unflatten(
            0, items.data.shape[:2]
        )

    def adapt(self, support: Any, ctx: Any) -> Any:
        member = F.one_hot(support.targets.values, support.ways).float()  # (B, S, N)
        return member.transpose(1, 2) @ self.embed(support.items) / member.sum(1).unsqueeze(-1)

    def predict(self, state: Any, queries: Any, ctx: Any) -> Any:
        return self.embed(queries) @ state.transpose(1, 2)


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


@pytest.fixture
def flat() -> type[Flat]:
    return Flat
