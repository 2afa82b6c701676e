"""Memory-mapped items: what is read, allocated and kept does not grow with the bank."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from metabench.engine import mapped
from metabench.engine.gather import ItemStore, training_batch
from metabench.engine.mapped import MappedItems
from metabench.episodes.protocol import EpisodeShape
from metabench.episodes.source import EpisodeSource
from metabench.testing.benchmarks.subjects import TIERED_IMAGE, TIERED_ITEMS, mapped_bank

SHAPES = [EpisodeShape(ways=5, shots=1, queries=15), EpisodeShape(ways=20, shots=5, queries=15)]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a file of holes takes no room, and one of 9.5 GB is allowed."""
    folder = tmp_path_factory.mktemp("sparse")
    try:
        mapped_bank(folder)
        taken = (folder / f"{TIERED_ITEMS}.npy").stat().st_blocks * 512
    except (OSError, AttributeError) as error:
        pytest.skip(f"no large sparse file can be made here: {error}")
    if taken > 2**20:
        pytest.skip("files of holes take room here")
    return folder


class Counted(np.memmap):  # type: ignore[type-arg]
    """Notes how many items are read at once."""

    read: list[int] = []  # noqa: RUF012

    def __getitem__(self, index: object) -> object:
        if isinstance(index, np.ndarray):
            self.read.append(index.size)
        return super().__getitem__(index)


def cost_of_an_episode(folder: Path, items: int, shape: EpisodeShape) -> tuple[int, int]:
    """Items read by, and the most memory that Python and NumPy allocate for, one episode."""
    bank = mapped_bank(folder, items)
    counted = bank.data.view(Counted)
    bank = type(bank)(counted, bank.offsets, bank.names, bank.digest, bank.split)
    source = EpisodeSource(bank, shape, b"0123456789abcdef")
    store = ItemStore(bank, TIERED_IMAGE, torch.device("cpu"))
    training_batch(source.draw([0]), store, shape.ways)  # whatever is made once
    Counted.read.clear()
    tracemalloc.start()
    training_batch(source.draw([1]), store, shape.ways)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sum(Counted.read), peak


@pytest.mark.parametrize("shape", SHAPES)
def test_an_episode_costs_the_same_whatever_the_bank(sparse: Path, shape: EpisodeShape) -> None:
    sizes = (1000, 50_000, TIERED_ITEMS)
    read, allocated = zip(*(cost_of_an_episode(sparse, n, shape) for n in sizes), strict=True)
    assert set(read) == {shape.ways * (shape.shots + shape.queries)}
    assert max(allocated) < 1.01 * min(allocated)


def test_cost_is_linear_in_the_size_of_an_episode(sparse: Path) -> None:
    (few, little), (many, much) = (cost_of_an_episode(sparse, 50_000, s) for s in SHAPES)
    assert many == few * 400 / 80
    assert much < 1.05 * little * 400 / 80


RESIDENT = """
import json, sys
from pathlib import Path
import torch
from metabench.engine.gather import ItemStore, training_batch
from metabench.episodes.protocol import EpisodeShape
from metabench.episodes.source import EpisodeSource
from metabench.testing.benchmarks.subjects import TIERED_IMAGE, mapped_bank
from metabench.testing.resident import peak_bytes

torch.set_num_threads(1)
bank = mapped_bank(Path(sys.argv[1]))
source = EpisodeSource(bank, EpisodeShape(ways=5, shots=1, queries=15), b"0123456789abcdef")
store = ItemStore(bank, TIERED_IMAGE, torch.device("cpu"))
training_batch(source.draw([0]), store, 5)
before = peak_bytes()
for number in range(int(sys.argv[2])):
    training_batch(source.draw([number]), store, 5)
print(json.dumps({"before": before, "after": peak_bytes()}))
"""


def test_resident_memory_is_bounded_over_many_episodes(sparse: Path) -> None:
    """400 episodes read 680 MB; as many as would be mapped around them are several times that."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(sparse), "400"],
        check=True,
        capture_output=True,
        text=True,
    )
    resident = json.loads(done.stdout)
    assert resident["after"] - resident["before"] < mapped.RESIDENT_BYTES + 64 * 2**20


def test_letting_go_of_pages_leaves_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 2000)
    data = np.random.default_rng(0).integers(0, 256, (5000, 3), dtype=np.uint8)
    np.save(tmp_path / "items.npy", data)
    whole = np.load(tmp_path / "items.npy", mmap_mode="r")
    for start in (0, 1000):  # a part of a map lies in the same map
        part = MappedItems(whole[start:])
        assert part._map is not None
        for index in (np.array([[0, 3999], [7, 7]]), np.arange(4000)):
            assert np.array_equal(part[index], data[start:][index])
    assert MappedItems(data)._map is None
    assert MappedItems(np.load(tmp_path / "items.npy", mmap_mode="c"))._map is None
