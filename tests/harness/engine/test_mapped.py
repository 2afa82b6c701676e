"""Memory-mapped items: what is read, allocated and kept does not grow with the bank."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metabench.engine import mapped
from metabench.engine.gather import ItemStore, training_batch
from metabench.engine.mapped import MappedItems
from metabench.episodes.protocol import EpisodeShape
from metabench.episodes.source import EpisodeSource
from metabench.testing.benchmarks.subjects import TIERED_IMAGE, TIERED_ITEMS, mapped_bank
from metabench.testing.resident import resident_mib

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

    def take(self, indices: Any, axis: Any = None, **options: Any) -> Any:  # type: ignore[override]
        self.read.append(indices.size)
        return super().take(indices, axis, **options)


def cost_of_an_episode(
    folder: Path, items: int, shape: EpisodeShape, selected: bool = False
) -> tuple[int, int]:
    """Items read by, and the most memory that Python and NumPy allocate for, one episode."""
    bank = mapped_bank(folder, items)
    bank = replace(bank, data=bank.data.view(Counted))
    if selected:
        bank = bank.select(bank.names[::-1], "train")
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
@pytest.mark.parametrize("selected", [False, True])
def test_an_episode_costs_the_same_whatever_the_bank(
    sparse: Path, shape: EpisodeShape, selected: bool
) -> None:
    sizes = (1000, 50_000, TIERED_ITEMS)
    costs = (cost_of_an_episode(sparse, n, shape, selected) for n in sizes)
    read, allocated = zip(*costs, strict=True)
    assert set(read) == {shape.ways * (shape.shots + shape.queries)}
    assert max(allocated) < 1.01 * min(allocated)


def test_cost_is_linear_in_the_size_of_an_episode(sparse: Path) -> None:
    (few, little), (many, much) = (cost_of_an_episode(sparse, 50_000, s) for s in SHAPES)
    assert many == few * 400 / 80
    assert much < 1.05 * little * 400 / 80


def printed_by(script: str, *words: str) -> dict[str, float]:
    """The JSON that a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


RESIDENT = """
import json, sys
from pathlib import Path
from typing import Any
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
    resident = printed_by(RESIDENT, str(sparse), "400")
    assert resident["after"] - resident["before"] < mapped.RESIDENT_BYTES + 64 * 2**20


SPLIT = """
import json, sys
from pathlib import Path
from typing import Any
import torch
from metabench.data.splits import split_banks
from metabench.engine.gather import ItemStore, training_batch
from metabench.episodes.protocol import EpisodeShape
from metabench.episodes.source import EpisodeSource
from metabench.testing.benchmarks.subjects import TIERED_IMAGE, mapped_bank
from metabench.testing.resident import peak_bytes, resident_mib

torch.set_num_threads(1)
whole = mapped_bank(Path(sys.argv[1]))
before = resident_mib()
names = {"train": whole.names[::2], "validation": whole.names[1::4], "test": whole.names[3::4]}
banks = split_banks(whole.data, whole.offsets, whole.names, whole.digest, names)
banks["both"] = banks["train"].joined(banks["validation"])
split = resident_mib() - before
source = {name: EpisodeSource(bank, EpisodeShape(ways=5, shots=1, queries=15),
    b"0123456789abcdef") for name, bank in banks.items()}
stores = {name: ItemStore(bank, TIERED_IMAGE, torch.device("cpu")) for name, bank in banks.items()}
training_batch(source["train"].draw([0]), stores["train"], 5)
begun = peak_bytes()
for number in range(int(sys.argv[2])):
    for name, store in stores.items():
        training_batch(source[name].draw([number]), store, 5)
read = (peak_bytes() - begun) / 2**20
print(json.dumps({"split": split, "read": read, "gib": whole.data.nbytes / 2**30}))
"""


def test_splits_of_a_map_keep_to_the_bound_of_one_map(sparse: Path) -> None:
    """Neither the splits nor what is read through all of them in turn are kept in memory."""
    if resident_mib() is None:
        pytest.skip("the system does not say how much memory is resident")
    mebibytes = printed_by(SPLIT, str(sparse), "100")
    assert mebibytes["gib"] > 8
    assert mebibytes["split"] < 32  # 3 x 8 bytes an item for the rows, and what is left over
    assert mebibytes["read"] < mapped.RESIDENT_BYTES / 2**20 + 64


def test_all_who_read_a_map_count_towards_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 2000)
    monkeypatch.setattr(mapped, "AROUND_BYTES", 0)
    np.save(tmp_path / "items.npy", np.zeros((1000, 4), np.uint8))
    whole = np.load(tmp_path / "items.npy", mmap_mode="r")
    first, second = MappedItems(whole), MappedItems(whole)
    assert first._map is second._map is not None
    first[np.arange(300)]
    assert mapped._read_of[first._map] == 1200
    second[np.arange(200)]
    assert mapped._read_of[first._map] == 2000
    second[np.arange(1)]
    assert mapped._read_of[first._map] == 0


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
