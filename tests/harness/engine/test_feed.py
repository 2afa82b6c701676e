"""What training reads: a pure function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metabench.api.recipe import Recipe
from metabench.engine.build import training_bank, training_shape
from metabench.engine.feed import EPISODES_AHEAD, BatchFeed, EpisodeFeed, TrainingData
from metabench.engine.gather import ItemStore, training_batch
from metabench.episodes.protocol import Rotation

EPISODES = Recipe(meta_batch=3, shots=1, queries=2)


def test_a_step_reads_its_own_episodes(world) -> None:
    """Episodes step x meta_batch and on, though they are drawn many at a time."""
    feed = EpisodeFeed(world.data(EPISODES), EPISODES, 7, "episodic")
    for step in (0, 1, EPISODES_AHEAD // 3, EPISODES_AHEAD, 5):
        numbers, batch = feed.batch(step)
        assert numbers == [3 * step, 3 * step + 1, 3 * step + 2]
        drawn = feed._source.draw(numbers)
        expected = training_batch(drawn, feed.store, 4)
        assert torch.equal(batch.support.items.data, expected.support.items.data)
        assert torch.equal(batch.queries.data, expected.queries.data)
        assert torch.equal(batch.query_targets.values, expected.query_targets.values)
    assert batch.support.items.data.shape == (3, 4, 1, 6, 6)
    assert feed.items_a_step == 3 * 4 * (1 + 2)


def test_the_recipe_goes_before_the_protocol(world) -> None:
    recipe = Recipe(ways=6, queries=1)
    _, batch = EpisodeFeed(world.data(recipe), recipe, 0, "episodic").batch(0)
    assert batch.support.ways == 6
    assert batch.support.targets.values.shape == (1, 12)  # 2 shots: the protocol's
    assert batch.query_targets.values.shape == (1, 6)


def test_training_never_reads_other_splits(world) -> None:
    feed = EpisodeFeed(world.data(EPISODES), EPISODES, 0, "episodic")
    images = {image.tobytes() for image in world.banks["train"].items()}
    for step in range(5):
        _, batch = feed.batch(step)
        for data in (batch.support.items.data, batch.queries.data):
            pixels = (data.flatten(0, 1) * 255).round().to(torch.uint8).numpy()
            assert all(image.tobytes() in images for image in pixels)


@pytest.mark.parametrize("kind", [EpisodeFeed, BatchFeed])
def test_what_is_read_hangs_on_seed_and_purpose(world, kind) -> None:
    recipe = Recipe(batch_size=16)

    def first(seed: int, purpose: str) -> torch.Tensor:
        batch = kind(world.data(recipe), recipe, seed, purpose).batch(3)
        return batch[0] if kind is BatchFeed else batch[1].queries.data

    assert torch.equal(first(1, "a"), first(1, "a"))
    assert not torch.equal(first(1, "a"), first(2, "a"))
    assert not torch.equal(first(1, "a"), first(1, "b"))


def test_a_batch_does_not_depend_on_those_before(world) -> None:
    recipe = Recipe(batch_size=16)
    forth = BatchFeed(world.data(recipe), recipe, 0, "pretrain")
    in_order = [forth.batch(step) for step in range(20)]
    back = BatchFeed(world.data(recipe), recipe, 0, "pretrain")
    for step in reversed(range(20)):
        data, classes = back.batch(step)
        assert torch.equal(data, in_order[step][0])
        assert torch.equal(classes, in_order[step][1])


def codes(data: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in (data * 255).round().to(torch.uint8).numpy()]


@pytest.mark.parametrize("turned", [False, True])
def test_an_epoch_is_every_item_once_with_its_class(world, turned: bool) -> None:
    recipe = Recipe(batch_size=18, augmentation="rotation-classes" if turned else "none")
    bank = world.banks["train"]
    class_of = {}
    for item, image in enumerate(bank.items()):
        for turn in range(4 if turned else 1):
            rotated = np.rot90(image, turn, axes=(-2, -1)).copy()
            class_of[rotated.tobytes()] = (item // 12) * 4 + turn if turned else item // 12
    assert len(class_of) == 108 * (4 if turned else 1)  # all images differ

    feed = BatchFeed(world.data(recipe), recipe, 0, "pretrain")
    steps = len(class_of) // 18
    epochs = []
    for epoch in range(2):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            data, classes = feed.batch(step)
            assert [class_of[code] for code in codes(data)] == classes.tolist()
            seen += codes(data)
        assert sorted(seen) == sorted(class_of)
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_an_incomplete_last_batch_is_left_out(world) -> None:
    recipe = Recipe(batch_size=50)  # two to an epoch of 108
    feed = BatchFeed(world.data(recipe), recipe, 0, "pretrain")
    first_epoch = codes(feed.batch(0)[0]) + codes(feed.batch(1)[0])
    assert len(set(first_epoch)) == 100
    assert not set(first_epoch) >= set(codes(feed.batch(2)[0]) + codes(feed.batch(3)[0]))


def test_a_batch_is_at_most_everything(world) -> None:
    recipe = Recipe(batch_size=1000)
    feed = BatchFeed(world.data(recipe), recipe, 0, "pretrain")
    assert feed.items_a_step == 108
    assert sorted(codes(feed.batch(0)[0])) == sorted(codes(feed.batch(1)[0]))


def test_everything_is_the_split_in_its_order(world) -> None:
    recipe = Recipe()
    batches = list(BatchFeed(world.data(recipe), recipe, 0, "fit").everything(True))
    pictures = [code for batch in batches for code in codes(batch.data)]
    assert pictures == [image.tobytes() for image in world.banks["train"].items()]
    classes = [c for batch in batches for c in batch.classes.tolist()]
    assert classes == np.repeat(range(9), 12).tolist()


def test_everything_holds_each_turn_of_an_item_where_rotations_are_classes(world) -> None:
    recipe = Recipe(augmentation="rotation-classes")
    batches = list(BatchFeed(world.data(recipe), recipe, 0, "fit").everything(True))
    assert len(batches) == 2  # 432 items, 256 at a time
    classes = [c for batch in batches for c in batch.classes.tolist()]
    assert sorted(classes) == np.repeat(range(36), 12).tolist()
    first = world.banks["train"].items()[0, 0]
    pictures = codes(batches[0].data[:4])
    assert pictures == [np.rot90(first, k).tobytes() for k in range(4)]


def test_where_rotations_are_classes_they_are_not_random_as_well(world) -> None:
    """Or "a" and "a rotated 90" could be the same pictures under two labels of one episode."""
    protocol = world.protocol.model_copy(update={"rotation": Rotation.EPISODE})
    recipe = Recipe(ways=8, queries=1, augmentation="rotation-classes")
    bank = training_bank(world.banks["train"], recipe, protocol)
    data = TrainingData(ItemStore(bank, world.image, torch.device("cpu")), protocol)
    feed = EpisodeFeed(data, recipe, 0, "episodic")
    drawn = feed._source.draw(range(50))
    assert (drawn.support_turns == np.repeat(drawn.classes % 4, world.protocol.shots, 1)).all()
    assert training_shape(Recipe(), protocol).rotation is Rotation.EPISODE
