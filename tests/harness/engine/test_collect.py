"""Tasks with whole classes, artefacts to learn from, and figures of an algorithm by itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import KilledError, Memory, interrupt_at
from torch import Tensor, nn

from metabench.api.context import Context
from metabench.api.items import EpisodeBatch
from metabench.api.phases import Collect, Episodic, Learn, Phase
from metabench.api.recipe import Recipe
from metabench.engine import descent, tasks
from metabench.engine.collect import examples_for
from metabench.engine.feed import ExampleFeed, TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.tasks import TaskFeed
from metabench.engine.train import TrainingResult, planned_phases, train
from metabench.engine.trial import Attempt
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Rotation
from metabench.errors import PluginError

COLLECTING = Recipe(steps=4, meta_batch=3)


def whole(recipe: Recipe = COLLECTING) -> Collect:
    return Collect(lambda batch, ctx: {}, recipe, whole_classes=True)


def uneven(world) -> ClassBank:
    """The training split, class c less its last c items."""
    bank = world.banks["train"]
    sizes = bank.class_sizes - np.arange(len(bank.names))
    kept = [first + np.arange(size) for first, size in zip(bank.offsets, sizes, strict=False)]
    return replace(bank, rows=np.concatenate(kept), offsets=np.concatenate([[0], np.cumsum(sizes)]))


def images(data: Tensor) -> list[bytes]:
    return [image.tobytes() for image in (data * 255).round().to(torch.uint8).numpy()]


@pytest.mark.parametrize("rotation", list(Rotation))
def test_queries_are_all_other_items_of_the_classes(world, rotation: Rotation) -> None:
    """Looked up in the bank itself: each item of a class once, in one quarter turn, no other."""
    world = world.turned(rotation)
    bank = uneven(world)
    data = TrainingData(
        ItemStore(bank.rotated() if rotation is Rotation.CLASSES else bank, world.image, CPU),
        world.protocol,
    )
    items = 0
    feed = TaskFeed(world.make(world.NearestRaw), whole(), data, 0)
    for step in range(3):
        numbers, batch, count = feed.tasks(step)
        assert numbers == [3 * step, 3 * step + 1, 3 * step + 2]
        mask = batch.queries.mask
        assert mask is batch.query_targets.mask
        for b, label in itertools.product(range(3), range(4)):
            asked = batch.query_targets.values[b] == label
            asked = asked if mask is None else asked & mask[b]
            known = batch.support.targets.values[b] == label
            found = torch.cat([batch.support.items.data[b][known], batch.queries.data[b][asked]])
            underlying = int(batch.classes[b, label]) // data.store.bank.views
            own = range(bank.offsets[underlying], bank.offsets[underlying + 1])
            turned = [
                sorted(
                    np.rot90(bank.items(np.array(own)), k, (-2, -1)).copy()[i].tobytes()
                    for i in range(len(own))
                )
                for k in range(4)
            ]
            turns = [k for k in range(4) if turned[k] == sorted(images(found))]
            assert len(turns) == 1
            if rotation is Rotation.NONE:
                assert turns == [0]
            if rotation is Rotation.CLASSES:
                assert turns == [int(batch.classes[b, label]) % 4]
            items += len(own)
        items -= count
    assert items == 0


CPU = torch.device("cpu")


def test_of_classes_alike_no_item_is_padding(world) -> None:
    feed = TaskFeed(world.make(), whole(), world.data(COLLECTING), 0)
    _, batch, count = feed.tasks(0)
    assert batch.queries.mask is None
    assert batch.query_targets.mask is None
    assert batch.queries.data.shape == (3, 4 * (12 - 2), 16)
    assert count == 3 * 4 * 12


@torch.no_grad()
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rotation", [Rotation.NONE, Rotation.EPISODE])
def test_embeddings_are_those_of_the_items_each_computed_once(
    world, monkeypatch: pytest.MonkeyPatch, kept: bool, rotation: Rotation
) -> None:
    world = world.turned(rotation)
    if not kept:
        monkeypatch.setattr(tasks, "KEPT", 100)
    counted: list[int] = []

    class Counting(world.Nearest):
        def embed(self, data: Tensor) -> Tensor:
            counted.append(len(data))
            return super().embed(data)

    algorithm, raw = world.make(Counting).eval(), world.make(world.NearestRaw).eval()
    data = world.data(COLLECTING)
    feed, plain = TaskFeed(algorithm, whole(), data, 0), TaskFeed(raw, whole(), data, 0)
    for step in range(20):
        batch, expected = feed.tasks(step).batch, plain.tasks(step).batch
        for found, items in (
            (batch.support.items, expected.support.items),
            (batch.queries, expected.queries),
        ):
            torch.testing.assert_close(found.data, raw.embedded(items).data)
        assert torch.equal(batch.query_targets.values, expected.query_targets.values)
        assert torch.equal(batch.support.targets.values, expected.support.targets.values)
        assert torch.equal(batch.classes, expected.classes)
    turns = 4 if rotation is Rotation.EPISODE else 1
    # One look at the first ones tells how many go at once.
    assert (sum(counted) <= 9 * 12 * turns + 2) == kept


def test_an_epoch_is_every_example_once() -> None:
    examples = {"a": torch.arange(10), "b": torch.arange(10.0) * 2}
    feed = ExampleFeed(examples, Recipe(batch_size=4), 0, "learn")
    assert feed.items_a_step == 4
    epochs = []
    for epoch in range(3):
        batches = [feed.batch(2 * epoch + step) for step in range(2)]
        assert all(torch.equal(2.0 * batch["a"], batch["b"]) for batch in batches)
        epochs.append(torch.cat([batch["a"] for batch in batches]).tolist())
        assert len(set(epochs[-1])) == 8  # the incomplete batch is left out
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = ExampleFeed(examples, Recipe(batch_size=4), 0, "learn")
    assert torch.equal(again.batch(5)["a"], feed.batch(5)["a"])
    assert ExampleFeed(examples, Recipe(batch_size=99), 0, "learn").batch(0)["a"].shape == (10,)


def regression(world) -> type:
    """Learns the mean feature of whole classes from that of their support sets."""

    class Regression(world.Nearest):
        name = "regression"
        collected = 0

        def build(self) -> None:
            self.linear = nn.Linear(16, 16)
            self.register_buffer("size", torch.zeros(()))

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            collecting = recipe.model_copy(update={"steps": min(4, recipe.steps), "meta_batch": 3})
            return [
                Episodic(recipe),
                Collect(self.pairs, collecting, self.note, whole_classes=True),
                Learn(recipe, self.error),
            ]

        def pairs(self, batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
            assert not self.training
            type(self).collected += 1
            every = torch.cat([batch.support.items.data, batch.queries.data], dim=1)
            return {"of_support": batch.support.items.data.mean(1), "of_all": every.mean(1)}

        def note(self, examples: Mapping[str, Tensor]) -> None:
            self.size.copy_(examples["of_all"].square().mean())

        def error(self, examples: Mapping[str, Tensor], ctx: Context) -> Tensor:
            noise = 0.1 * ctx.rng.normal(16)
            found = self.linear(examples["of_support"] + noise)
            return (found - examples["of_all"]).square().mean() / self.size

    return Regression


LEARNING = Recipe(steps=12, batch_size=4, lr=1e-2, validate_every=4, validation_episodes=5)


@pytest.mark.parametrize("size", [2, 7])
def test_examples_to_time_a_step_are_a_whole_batch_of_real_ones(world, size: int) -> None:
    """Of one step of collecting, repeated where they are too few; the algorithm is left as it is"""
    kind = regression(world)
    recipe = LEARNING.model_copy(update={"batch_size": size})
    algorithm = world.make(kind, recipe)
    phases = planned_phases(algorithm, recipe, 3)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    found = examples_for(algorithm, phases[2], phases, world.data(recipe), 3)
    assert kind.collected == 1
    feed = TaskFeed(algorithm, phases[1], world.data(recipe), 3)
    expected = algorithm.pairs(feed.tasks(0).batch, None)
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        assert len(rows) == max(3, size)
        assert all(torch.equal(row, expected[name][n % 3]) for n, row in enumerate(rows))
    assert all(torch.equal(value, before[n]) for n, value in algorithm.state_dict().items())


def trained(world, kind: type, **how: Any) -> tuple[TrainingResult, dict[str, Tensor]]:
    algorithm = world.make(kind, LEARNING)
    data = world.data(LEARNING, world.validator(algorithm))
    return train(algorithm, LEARNING, data, 3, **how), algorithm.state_dict()


def test_learning_lowers_the_loss_and_is_counted(world) -> None:
    result, state = trained(world, regression(world))
    losses = [row["loss"] for row in result.curve if row["phase"] == "learn"]
    assert losses[-1] < 0.8 * losses[0]
    assert state["size"] > 0
    assert result.steps == 12 + 4 + 12
    assert result.items == 12 * 4 * 5 + 4 * 3 * 4 * 12 + 12 * 4
    assert result.selected_step in {4, 8, 12}


@pytest.mark.parametrize(
    ("phase", "step"), [("episodic", 7), ("collect", 3), ("learn", 1), ("learn", 7)]
)
def test_a_killed_training_goes_on_to_the_same_bits(
    world, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    """And what was collected whole isn't collected again, whenever the last checkpoint was."""
    kind = regression(world)
    expected, state = trained(world, kind)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    for every in (1, 5):
        checkpoints, kind.collected = Memory(every), 0
        with pytest.raises(KilledError):
            trained(world, kind, checkpoints=checkpoints, monitor=interrupt_at(phase, step))
        made = kind.collected
        result, resumed = trained(world, kind, checkpoints=checkpoints)
        assert result == expected
        assert all(torch.equal(value, state[key]) for key, value in resumed.items())
        assert kind.collected - made == (0 if phase == "learn" else 4)


def test_where_what_was_collected_is_lost_training_starts_anew(
    world, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind = regression(world)
    expected, state = trained(world, kind)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    checkpoints = Memory()
    with pytest.raises(KilledError):
        trained(world, kind, checkpoints=checkpoints, monitor=interrupt_at("learn", 7))
    checkpoints.beside.clear()
    result, resumed = trained(world, kind, checkpoints=checkpoints)
    assert "training starts anew" in caplog.text
    assert result == expected
    assert all(torch.equal(value, state[key]) for key, value in resumed.items())


def test_no_steps_collect_and_learn_nothing(world) -> None:
    algorithm = world.make(regression(world), Recipe(steps=0))
    assert train(algorithm, Recipe(steps=0), world.data(Recipe()), 0) == TrainingResult()


def test_learning_needs_something_collected(world) -> None:
    class Impatient(world.Nearest):
        name = "impatient"

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            learn = Learn(recipe, lambda examples, ctx: torch.zeros(()))
            return [learn, Collect(lambda batch, ctx: {}, recipe)]

    with pytest.raises(PluginError, match="'learn' learns from 'collect', which no Collect phase"):
        planned_phases(world.make(Impatient), Recipe(), 0)


@pytest.mark.parametrize(
    "made", [{}, {"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.ones(())}]
)
def test_what_cannot_be_learnt_from_is_refused_where_it_is_made(world, made: Any) -> None:
    kind = regression(world)
    kind.pairs = lambda self, batch, ctx: made
    with pytest.raises(PluginError, match="'collect' made"):
        train(world.make(kind, LEARNING), LEARNING, world.data(LEARNING), 0)


def test_a_refit_looks_at_no_validation_split(world) -> None:
    """It trains on it: also a phase with a recipe of its own may select by nothing there."""
    recipe = Recipe(steps=2, validate_every=1, validation_episodes=5, refit=True)

    class Selects(world.Nearest):
        name = "selects"

        def phases(self, given: Recipe) -> Sequence[Phase]:
            own = recipe.model_copy(update={"refit": False})
            return [Episodic(own, name="first"), Episodic(given)]

    looked: list[bool] = []

    def attempts(bank: ClassBank, refit: bool) -> Any:
        return nullcontext(Attempt(tick=lambda *_: looked.append(refit)))

    world.trial(recipe, Selects).train(attempts)
    assert looked
    assert not any(looked)
