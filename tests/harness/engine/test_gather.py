"""Gathering: which items, turned how, and in which range."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metabench.api.backbone import ItemSpec
from metabench.engine.gather import ItemStore, queries_of, support_of, training_batch
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Rotation
from metabench.episodes.source import EpisodeSource

CPU = torch.device("cpu")


def test_images_are_scaled_to_one(world) -> None:
    store = world.store()
    index = np.array([[3, 0], [3, 70]])
    gathered = store.gather(index)
    assert gathered.dtype == torch.float32
    assert gathered.shape == (2, 2, 1, 6, 6)
    expected = world.banks["test"].data[index].astype(np.float32) / np.float32(255)
    assert np.array_equal(gathered.numpy(), expected)


def test_channels_are_normalised_where_the_item_says_so() -> None:
    data = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3)).astype(np.uint8)
    bank = ClassBank(data, np.array([0, 4]), ("a",), "d", "test")
    item = ItemSpec("image", (2, 3, 3), mean=(0.5, 0.1), std=(0.2, 2.0))
    gathered = ItemStore(bank, item, CPU).gather(np.arange(4)).numpy()
    np.testing.assert_allclose(gathered[:, 0], (data[:, 0] / 255 - 0.5) / 0.2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gathered[:, 1], (data[:, 1] / 255 - 0.1) / 2.0, rtol=1e-5, atol=1e-6)


def test_what_is_no_image_stays_as_it_is() -> None:
    data = {"ids": np.arange(12).reshape(4, 3), "mask": np.arange(12).reshape(4, 3) % 2 == 0}
    bank = ClassBank(data, np.array([0, 4]), ("a",), "d", "test")
    gathered = ItemStore(bank, ItemSpec("tokens", (3,)), CPU).gather(np.array([[2, 0]]))
    assert gathered["ids"].tolist() == [[[6, 7, 8], [0, 1, 2]]]
    assert gathered["ids"].dtype == torch.int64
    assert gathered["mask"].tolist() == [[[True, False, True], [True, False, True]]]


def test_turns_are_those_of_rot90(world) -> None:
    store = world.store()
    items = np.array([[0, 5, 9], [5, 5, 5]])
    turns = np.array([[0, 1, 2], [3, 1, 0]])
    gathered = store.gather(items, turns).numpy()
    for place in np.ndindex(items.shape):
        image = world.banks["test"].data[items[place]]
        expected = np.rot90(image, turns[place], axes=(-2, -1)) / np.float32(255)
        assert np.array_equal(gathered[place], expected.astype(np.float32))
    assert torch.equal(store.gather(items, np.zeros_like(turns)), store.gather(items))


def test_gathering_leaves_the_bank_alone(world) -> None:
    before = world.banks["test"].data.copy()
    gathered = world.store().gather(np.arange(4), np.array([1, 2, 3, 0]))
    gathered.zero_()
    assert np.array_equal(world.banks["test"].data, before)


def test_memory_mapped_items_are_gathered_as_others(world, tmp_path: Path) -> None:
    bank = world.banks["test"]
    np.save(tmp_path / "items.npy", bank.data)
    data = np.load(tmp_path / "items.npy", mmap_mode="r")
    mapped = ClassBank(data, bank.offsets, bank.names, bank.digest, bank.split)
    items = np.array([[7, 3], [0, 0]])
    assert torch.equal(
        ItemStore(mapped, world.image, CPU).gather(items), world.store().gather(items)
    )


@pytest.mark.parametrize("rotation", Rotation)
def test_an_episode_is_gathered_as_it_was_drawn(world, rotation: Rotation) -> None:
    bank = world.banks["test"]
    shape = EpisodeShape(ways=3, shots=2, queries=4, rotation=rotation)
    drawn = EpisodeSource(bank, shape, b"0123456789abcdef").draw([4, 0])
    store = world.store()
    support, queries = support_of(drawn, store, 3), queries_of(drawn, store)
    batch = training_batch(drawn, store, 3)
    assert support.ways == 3
    assert torch.equal(support.items.data, store.gather(drawn.support_items, drawn.support_turns))
    assert torch.equal(queries.data, store.gather(drawn.query_items, drawn.query_turns))
    assert support.targets.values.tolist() == drawn.support_labels.tolist()
    assert torch.equal(batch.support.items.data, support.items.data)
    assert torch.equal(batch.queries.data, queries.data)
    assert batch.query_targets.values.tolist() == drawn.query_labels.tolist()
    assert batch.classes.tolist() == drawn.classes.tolist()
