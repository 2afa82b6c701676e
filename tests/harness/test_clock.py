"""How times are taken: what is inside the window, what is left out, what comes back after it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metabench.api.algorithm import Algorithm, Problem
from metabench.api.backbone import Backbone, ItemSpec
from metabench.api.recipe import Hyperparameters
from metabench.clock import measure as clock
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.gather import ItemStore
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key

IMAGE = ItemSpec("image", (1, 4, 4))
PROTOCOL = Protocol(ways=3, shots=2, queries=4)
CALLS = clock.WARM_UP + clock.EPISODES


class Ticking:
    """A clock that stands still but for what algorithms take, and a record of who called it.

    Attributes:
        now: seconds.
        took: seconds of each call, by its name.
        calls: name and shape of the items of each call.
        process: collector on, gradients on, threads and model in training, at each call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.took: dict[str, list[float]] = {"adapt": [], "predict": [], "embed": []}
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.process: set[tuple[bool, bool, int, bool]] = set()

    def call(self, name: str, module: torch.nn.Module, data: torch.Tensor) -> None:
        """A second to embed; else thousandths that vary, and far longer while warming up."""
        number = len(self.took[name])
        seconds = 100.0 if number < clock.WARM_UP else (number * 7 % 17 + 1) / 1000
        self.took[name].append({"adapt": seconds, "predict": 3 * seconds, "embed": 1.0}[name])
        self.now += self.took[name][-1]
        self.calls.append((name, tuple(data.shape)))
        state = gc.isenabled(), torch.is_grad_enabled(), torch.get_num_threads(), module.training
        self.process.add(state)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    """The clock that `measure` reads, in a process with one thread."""
    clockwork = Ticking()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: clockwork.now))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield clockwork
    torch.set_num_threads(threads)


def measured(ticking: Ticking, base: type[Algorithm]) -> clock.Times:
    """Times of an algorithm of that kind that only tells the clock that it was called."""

    class Flat(Backbone):
        feature_dim = 16

        def forward(self, data: Any) -> Any:
            ticking.call("embed", self, data)
            return data.flatten(1)

    class Called(base):  # type: ignore[misc, valid-type]
        def adapt(self, support: Any, ctx: Any) -> Any:
            ticking.call("adapt", self, support.items.data)
            return support.items.data.flatten(2).mean(1)

        def predict(self, state: Any, queries: Any, ctx: Any) -> Any:
            ticking.call("predict", self, queries.data)
            return torch.zeros(*queries.data.shape[:2], PROTOCOL.ways)

    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4 * 8, *IMAGE.shape), dtype=np.uint8)
    bank = ClassBank(data, np.arange(5) * 8, tuple("abcd"), "made up", "test")
    hp = Hyperparameters()
    algorithm = Called(Flat(IMAGE, hp), hp, Problem(IMAGE, 3, 2, 3, 4)).train()
    source = EpisodeSource(bank, PROTOCOL.shape, protocol_key(bank, PROTOCOL))
    return clock.measure(algorithm, source, ItemStore(bank, IMAGE, torch.device("cpu")))


def test_times_are_medians_of_the_calls_after_the_warm_up(ticking: Ticking) -> None:
    times = measured(ticking, Algorithm)
    assert len(ticking.took["adapt"]) == len(ticking.took["predict"]) == CALLS
    adapt = [1e3 * seconds for seconds in ticking.took["adapt"][clock.WARM_UP :]]
    assert len(set(adapt)) == clock.EPISODES == times.episodes
    assert times.adapt_ms == pytest.approx(statistics.median(adapt))
    assert times.predict_ms == pytest.approx(3 * statistics.median(adapt))
    assert max(adapt) < 20  # nothing of the 100 s that each call took at first
    quarters = np.quantile(adapt, [0.25, 0.75], method="weibull")
    assert times.adapt_iqr_ms == pytest.approx(np.diff(quarters).item())
    assert times.predict_iqr_ms == pytest.approx(3 * np.diff(quarters).item())


def test_one_episode_at_a_time_is_adapted_to_and_then_predicted(ticking: Ticking) -> None:
    measured(ticking, Algorithm)
    an_episode = [("adapt", (1, 6, *IMAGE.shape)), ("predict", (1, 12, *IMAGE.shape))]
    assert ticking.calls == an_episode * CALLS


def test_embedding_is_part_of_both_times_and_never_done_ahead(ticking: Ticking) -> None:
    times = measured(ticking, EmbeddingAlgorithm)
    an_episode = [
        ("embed", (6, *IMAGE.shape)),
        ("adapt", (1, 6, 16)),
        ("embed", (12, *IMAGE.shape)),
        ("predict", (1, 12, 16)),
    ]
    assert ticking.calls == an_episode * CALLS
    adapt = statistics.median(ticking.took["adapt"][clock.WARM_UP :])
    assert times.adapt_ms == pytest.approx(1e3 * (1 + adapt))
    assert times.predict_ms == pytest.approx(1e3 * (1 + 3 * adapt))


@pytest.mark.parametrize("was_on", [True, False])
def test_nothing_is_collected_meanwhile_and_the_collector_is_as_it_was(
    ticking: Ticking, was_on: bool
) -> None:
    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        measured(ticking, Algorithm)
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert after is was_on
    # No collector, no gradients, the one thread of the process, a model in evaluation.
    assert ticking.process == {(False, False, 1, False)}


def test_the_collector_comes_back_after_an_error_too(ticking: Ticking) -> None:
    class BrokenError(Exception):
        pass

    def broken(*_: object) -> None:
        raise BrokenError

    ticking.call = broken  # type: ignore[method-assign]
    assert gc.isenabled()
    with pytest.raises(BrokenError):
        measured(ticking, Algorithm)
    assert gc.isenabled()
    assert torch.is_grad_enabled()
