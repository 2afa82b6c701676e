"""The benchmarks: sampling, gathering, inner loop, meta-step, evaluation, and what starts cost.

Parametrised over what is registered, so a contributed algorithm, backbone or data set is timed
without a line about it. Each calls what it times once before the clock runs. Nothing passes or
fails by a time: shared machines are noisy.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metabench.api.items import PyTree, tree_map
from metabench.data.folder import data_folder as default_data_folder
from metabench.engine.evaluate import evaluate
from metabench.engine.gather import ItemStore, training_batch
from metabench.engine.gradient import GradientAlgorithm
from metabench.engine.modes import ENGINES, EngineName, using_engine
from metabench.engine.numerics import process_kept, resolve_device, set_up_process
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape
from metabench.episodes.source import EpisodeSource, training_key
from metabench.errors import MetabenchError, UsageError
from metabench.plugins import registry
from metabench.testing.benchmarks.engines import EngineTime
from metabench.testing.benchmarks.hooks import ENGINE_TIMES, asked_for
from metabench.testing.benchmarks.subjects import (
    EPISODES,
    IMAGE,
    MAPPED_ITEMS,
    TIERED_IMAGE,
    Subject,
    made_up_bank,
    mapped_bank,
)
from metabench.testing.resident import resident_mib

Pair = tuple[str, str]
"""An algorithm's and a backbone's name."""
SHAPES = {
    "5w1s15q": EpisodeShape(ways=5, shots=1, queries=15),
    "5w5s15q": EpisodeShape(ways=5, shots=5, queries=15),
    "20w5s15q": EpisodeShape(ways=20, shots=5, queries=15),
}
DRAWN, GATHERED = 64, 4
"""Episodes that one call draws, and that one call gathers."""
COMMANDS = {
    "help": ["-m", "metabench", "--help"],
    "list": ["-m", "metabench", "list"],
    "import-torch": ["-c", "import torch"],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise by what is registered and was asked for."""
    asked, known = asked_for(metafunc.config), registry()
    names = metafunc.fixturenames
    if "pair" in names:
        found = [(a, b) for a in asked.algorithms_of(known) for b in asked.backbones_of(known)]
        if "engine" in names:
            found = [pair for pair in found if _has_inner_loop(pair[0])]
        metafunc.parametrize("pair", found, ids=["-".join(pair) for pair in found])
    if "engine" in names:
        # It takes tens of seconds to compile: not for a run that only sees that all of it works.
        marks = {"compile": [pytest.mark.slow]}
        # What `graph` captures is a whole step of the engine's training, not an inner loop.
        loops = [name for name in ENGINES if name != "graph"]
        engines = [pytest.param(name, marks=marks.get(name, [])) for name in loops]
        metafunc.parametrize("engine", engines)
    if "dataset" in names:
        metafunc.parametrize("dataset", asked.datasets_of(known))


def _has_inner_loop(algorithm: str) -> bool:
    try:
        return issubclass(registry().get("algorithm", algorithm).load(), GradientAlgorithm)
    except MetabenchError:
        return False  # its meta-step says what is wrong with it


# What the benchmarks stand on.


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """What everything is timed on."""
    return resolve_device(asked_for(request.config).device)


@pytest.fixture(autouse=True)
def as_a_worker(device: torch.device) -> Iterator[None]:
    """Threads and arithmetic as a cell's worker has them."""
    with process_kept():
        set_up_process(device)
        yield


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """Where data sets are."""
    return asked_for(request.config).data_folder or default_data_folder()


@pytest.fixture(scope="session")
def mapped_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the made-up memory-mapped banks lie."""
    return tmp_path_factory.mktemp("mapped")


@pytest.fixture
def subject(pair: Pair, device: torch.device) -> Subject:
    """The algorithm on the backbone, built; skips where they do not go together."""
    built = Subject(registry(), *pair, device)
    try:
        assert built.model is not None
    except UsageError as error:
        pytest.skip(error.message)
    return built


@pytest.fixture
def timed(benchmark: Any, device: torch.device) -> Callable[..., float | None]:
    """`timed(fn, group)`: benchmark a function; a device's work counts until it is done.

    Returns the median in seconds; None where benchmarks are disabled.
    """

    def measure(fn: Callable[[], object], group: str) -> float | None:
        def whole() -> object:
            result = fn()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return result

        benchmark.group = group
        if benchmark.enabled:
            start = time.perf_counter()
            whole()
            benchmark.extra_info["first_call_s"] = time.perf_counter() - start
        benchmark(whole)
        return benchmark.stats.stats.median if benchmark.enabled else None

    return measure


# Episodes.


def _drawn_from(bank: ClassBank, shape: str) -> EpisodeSource:
    return EpisodeSource(bank, SHAPES[shape], training_key(bank, SHAPES[shape], 0, "benchmark"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("items", MAPPED_ITEMS)
def test_sampling(
    timed: Callable[..., float | None], mapped_folder: Path, items: int, shape: str
) -> None:
    """By the size of the bank, which should make no difference, and of the episode."""
    source = _drawn_from(mapped_bank(mapped_folder, items), shape)
    timed(lambda: source.draw(range(DRAWN)), f"sampling {DRAWN} episodes")


@pytest.mark.parametrize("shape", SHAPES)
def test_gathering(timed: Callable[..., float | None], device: torch.device, shape: str) -> None:
    """From small images in memory."""
    source = _drawn_from(made_up_bank("train"), shape)
    store, drawn = ItemStore(source.bank, IMAGE, device), source.draw(range(GATHERED))
    ways = SHAPES[shape].ways
    timed(lambda: training_batch(drawn, store, ways), f"gathering {GATHERED} episodes, 28x28")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("items", MAPPED_ITEMS)
def test_drawing_and_gathering(
    benchmark: Any,
    timed: Callable[..., float | None],
    mapped_folder: Path,
    device: torch.device,
    items: int,
    shape: str,
) -> None:
    """From a memory-mapped bank; what is then resident is told beside the time.

    The same episodes come round again, so that the system has what they read in its cache: the
    disk is not what is timed.
    """
    source = _drawn_from(mapped_bank(mapped_folder, items), shape)
    store, ways = ItemStore(source.bank, TIERED_IMAGE, device), SHAPES[shape].ways
    starts = range(0, DRAWN, GATHERED)

    def draw(first: int) -> None:
        training_batch(source.draw(range(first, first + GATHERED)), store, ways)

    for first in starts if benchmark.enabled else ():
        draw(first)
    turn = cycle(starts)
    timed(
        lambda: draw(next(turn)),
        f"drawing and gathering {GATHERED} episodes, 84x84x3, memory-mapped",
    )
    benchmark.extra_info["resident_mib"] = resident_mib()


# Algorithms.


# `vmap` has no rule of its own for each operation, and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_inner_loop(
    request: pytest.FixtureRequest,
    timed: Callable[..., float | None],
    subject: Subject,
    engine: EngineName,
) -> None:
    """Adapt a meta-batch as in training, and take an outer gradient through it."""
    batch, context = subject.training_batch()
    model = subject.model

    def adapt() -> None:
        model.zero_grad()
        with using_engine(engine):
            total = _total(model.adapt(batch.support, context()))
            if total.requires_grad:  # Reptile takes no outer gradient
                total.backward()  # type: ignore[no-untyped-call]

    seconds = timed(adapt, f"inner loop, order {subject.order}")
    if seconds is not None:
        pair = (subject.algorithm, subject.backbone)
        noted = request.config.stash.setdefault(ENGINE_TIMES, [])
        noted.append(EngineTime(subject.device.type, subject.order, pair, engine, seconds))


def _total(state: PyTree) -> Tensor:
    """The sum of everything in a state that has a gradient."""
    found: list[Tensor] = []

    def note(leaf: Tensor) -> None:
        if leaf.requires_grad:
            found.append(leaf.sum())

    tree_map(note, state)
    return torch.stack(found).sum() if found else torch.zeros(())


def test_meta_step(timed: Callable[..., float | None], subject: Subject) -> None:
    """One step of training as the engine does it: feed, gradient, optimiser."""
    steps = subject.steps()
    if steps is None:
        pytest.skip(f"{subject.algorithm} is not trained by steps")
    step = steps.at(0)

    def training_step() -> None:
        with using_engine(subject.engine):
            step()

    timed(training_step, "meta-step")


def test_evaluation(timed: Callable[..., float | None], subject: Subject) -> None:
    source, items = subject.test_split()

    def test() -> None:
        with using_engine(subject.engine):
            evaluate(subject.model, source, items, EPISODES, "test")

    timed(test, f"evaluation of {EPISODES} episodes")


# What it takes to start.


def test_data_start_up(timed: Callable[..., float | None], data_folder: Path, dataset: str) -> None:
    """From nothing in memory to the first and the last item of each split."""
    cls = registry().get("dataset", dataset).load()
    there = cls(data_folder)
    if there.availability() == "missing":
        pytest.skip(f"{dataset} is not here: metabench data prepare {dataset}")
    there.prepare()

    def start() -> None:
        for bank in cls(data_folder).banks(cls.class_splits[0], None).values():
            ends = ItemStore(bank, there.item(None), torch.device("cpu"))
            ends.gather(bank.offsets[[0, -1]] - [0, 1])

    timed(start, "data start-up")


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_command_start_up(timed: Callable[..., float | None], words: list[str]) -> None:
    """Beside importing PyTorch, which looking must not do."""

    def start() -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    timed(start, "command-line start-up")
