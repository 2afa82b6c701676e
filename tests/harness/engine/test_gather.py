"""Gathering: which items, turned how, and in which range."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metabench.api.backbone import ItemSpec, channels_last
from metabench.engine import gather
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
    expected = world.banks["test"].items(index).astype(np.float32) / np.float32(255)
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
        image = world.banks["test"].items(items)[place]
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
    np.save(tmp_path / "items.npy", bank.items())
    data = np.load(tmp_path / "items.npy", mmap_mode="r")
    mapped = ClassBank(data, bank.offsets, bank.names, bank.digest, bank.split)
    items = np.array([[7, 3], [0, 0]])
    assert torch.equal(
        ItemStore(mapped, world.image, CPU).gather(items), world.store().gather(items)
    )


def copied(bank: ClassBank) -> ClassBank:
    """The same items in the same order, in arrays of the bank's own."""
    return replace(bank, data=bank.items(), rows=None)


@pytest.mark.parametrize("rotation", Rotation)
def test_a_selection_is_drawn_and_gathered_as_a_copy_of_its_items(rotation: Rotation) -> None:
    whole = bank_of(3)
    shape = EpisodeShape(ways=2, shots=2, queries=4, rotation=rotation)
    item = ItemSpec("image", (3, 8, 8))
    shared = whole.select(["d", "a", "b"], "train").select(["b", "d"], "test")
    episodes = []
    for bank in (shared, copied(shared)):
        drawn = EpisodeSource(bank, shape, b"0123456789abcdef").draw([4, 0])
        episodes.append((drawn, training_batch(drawn, ItemStore(bank, item, CPU), 2)))
    (mine, here), (theirs, there) = episodes
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(here.support.items.data, there.support.items.data)
    assert torch.equal(here.queries.data, there.queries.data)
    assert shared.data is whole.data


def test_a_selection_of_several_arrays_is_gathered_from_each() -> None:
    data = {"ids": np.arange(12).reshape(4, 3), "mask": np.arange(4) % 2 == 0}
    whole = ClassBank(data, np.array([0, 1, 4]), ("a", "b"), "d", "all")
    store = ItemStore(whole.select(["b"], "test"), ItemSpec("tokens", (3,)), CPU)
    gathered = store.gather(np.array([[2, 0]]))
    assert gathered["ids"].tolist() == [[[9, 10, 11], [3, 4, 5]]]
    assert gathered["mask"].tolist() == [[False, False]]


def test_only_a_banks_own_items_go_to_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that holds no values, but shapes: which is there on every machine."""
    whole, item, device = bank_of(3), ItemSpec("image", (3, 8, 8)), torch.device("meta")
    part = whole.select(["d", "a"], "test")
    assert part.nbytes == whole.nbytes // 2 == 20 * 3 * 8 * 8
    monkeypatch.setattr("metabench.engine.gather.DEVICE_BYTES", part.nbytes)
    placed = ItemStore(part, item, device)._resident
    assert (placed.shape, placed.device) == ((20, 3, 8, 8), device)
    assert ItemStore(whole, item, device)._resident is None


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


def bank_of(channels: int) -> ClassBank:
    data = np.random.default_rng(0).integers(0, 256, (40, channels, 8, 8)).astype(np.uint8)
    return ClassBank(data, np.arange(5) * 10, tuple("abcd"), "d", "test")


@pytest.mark.parametrize(("kept_there", "transfers"), [(True, 1), (False, 2)])
def test_a_batch_goes_to_the_device_at_once(
    kept_there: bool, transfers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of items and of turns, labels and classes in one; images that are not there already."""
    if not kept_there:
        monkeypatch.setattr(gather, "DEVICE_BYTES", 0)
    store = ItemStore(bank_of(3), ItemSpec("image", (3, 8, 8)), torch.device("meta"))
    shape = EpisodeShape(ways=3, shots=2, queries=4, rotation=Rotation.EPISODE)
    drawn = EpisodeSource(store.bank, shape, b"0123456789abcdef").draw([4, 0])
    sent: list[object] = []
    usual = gather._on
    monkeypatch.setattr(gather, "_on", lambda *what: (sent.append(what), usual(*what))[1])
    batch = training_batch(drawn, store, 3)
    assert len(sent) == transfers
    assert batch.support.items.data.shape == (2, 6, 3, 8, 8)
    for tensor in (batch.queries.data, batch.support.targets.values, batch.classes):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rotation", [Rotation.NONE, Rotation.EPISODE])
def test_a_convolution_takes_them_for_channels_last(channels: int, rotation: Rotation) -> None:
    item = ItemSpec("image", (channels, 8, 8), mean=(0.5,) * channels, std=(0.2,) * channels)
    store = ItemStore(bank_of(channels), item, CPU)
    shape = EpisodeShape(ways=3, shots=2, queries=4, rotation=rotation)
    drawn = EpisodeSource(store.bank, shape, b"0123456789abcdef").draw([4, 0])
    batch = training_batch(drawn, store, 3)
    gathered = [batch.support.items.data, batch.queries.data]
    gathered += [support_of(drawn, store, 3).items.data, queries_of(drawn, store).data]
    weight = torch.rand(4, channels, 3, 3)
    for images in (*gathered, store.gather(np.arange(6).reshape(2, 3))):
        assert channels == 1 or images.stride()[-3:] == (1, 8 * channels, channels)
        for episode in (images[0], images.unbind()[-1], images.flatten(0, 1)):
            assert F.conv2d(channels_last(episode), weight).stride(1) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_does_not_change_a_value(channels: int) -> None:
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.7)[:channels]
    bank = bank_of(channels)
    items = np.arange(40).reshape(4, 10)
    turns = items % 4
    rotated = np.stack([np.rot90(image, i % 4, (-2, -1)) for i, image in enumerate(bank.items())])
    pixels = torch.from_numpy(rotated.copy()).unflatten(0, (4, 10)).to(torch.float32) / 255
    of_mean, of_std = (torch.tensor(m).view(-1, 1, 1) for m in (mean, std))
    item = ItemSpec("image", (channels, 8, 8), mean, std)
    gathered = ItemStore(bank, item, CPU).gather(items, turns)
    assert torch.equal(gathered, (pixels - of_mean) / of_std)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("selected", [True, False])
def test_an_accelerator_gathers_the_same(
    channels: int, resident: bool, selected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not resident:
        monkeypatch.setattr("metabench.engine.gather.DEVICE_BYTES", 0)
    item = ItemSpec("image", (channels, 8, 8), (0.5,) * channels, (0.2,) * channels)
    shape = EpisodeShape(ways=3, shots=2, queries=4, rotation=Rotation.EPISODE)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    bank = bank_of(channels)
    if selected:
        bank = bank.select(["d", "a", "b"], "train")
    drawn = EpisodeSource(bank, shape, b"0123456789abcdef").draw([4, 0])
    here = training_batch(drawn, ItemStore(bank, item, CPU), 3)
    there = training_batch(drawn, ItemStore(bank, item, torch.device("cuda")), 3)
    for mine, theirs in (
        (here.support.items.data, there.support.items.data),
        (here.queries.data, there.queries.data),
    ):
        assert theirs.device.type == "cuda"
        assert theirs.stride() == mine.stride()
        torch.testing.assert_close(theirs.cpu(), mine, rtol=1e-6, atol=1e-6)
    assert torch.equal(there.query_targets.values.cpu(), here.query_targets.values)
