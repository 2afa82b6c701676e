"""A setting chosen on meta-validation; and batches whose labels are withheld."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from interruptions import KilledError, Memory, interrupt_at
from torch import Tensor, nn

from metabench.api.context import Context
from metabench.api.items import Items, PyTree
from metabench.api.phases import Batches, Choose, Episodic, Phase
from metabench.api.recipe import Recipe
from metabench.engine import descent
from metabench.engine.progress import Progress
from metabench.engine.train import planned_phases, train
from metabench.engine.trial import Attempt
from metabench.errors import UsageError
from metabench.runner.curve import curve_csv


def learner(world) -> type:
    """The nearest class mean, or the one that is furthest: which of them is chosen."""

    class Learner(world.Nearest):
        name = "learner"

        def build(self) -> None:
            self.register_buffer("sign", torch.ones(()))
            self.tried: list[int] = []

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            return [Choose(self.put, 3, episodes=40)]

        def put(self, number: int) -> None:
            self.tried.append(number)
            self.sign.fill_([-1.0, 0.0, 1.0][number])

        def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
            return self.sign * super().predict(state, queries, ctx)

    return Learner


def test_the_best_on_validation_is_put_in_place(world) -> None:
    recipe, told = Recipe(), []
    algorithm = world.make(learner(world), recipe)
    validator = world.validator(algorithm)
    result = train(algorithm, recipe, world.data(recipe, validator), 0, monitor=told.append)
    assert algorithm.tried == [0, 1, 2, 2]
    assert float(algorithm.sign) == 1
    assert result.validation_score == validator(40)  # of as many episodes as it asks for
    scores = [row["validation"] for row in result.curve]
    assert scores[0] < scores[2] == max(scores)
    assert told[-1] == Progress("choose", 3, 3, validation=max(scores))
    assert curve_csv(result.curve).decode().splitlines()[1] == f"choose,1,,,{scores[0]}"


def test_of_equal_ones_the_first(world) -> None:
    recipe = Recipe()
    algorithm = world.make(learner(world), recipe)
    asked: list[int] = []

    def validate(episodes: int) -> float:
        asked.append(episodes)
        return [0.5, 0.7, 0.7][len(asked) - 1]

    train(algorithm, recipe, world.data(recipe, validate), 0)
    assert asked == [40, 40, 40]
    assert algorithm.tried[-1] == 1


def test_without_a_validation_split_it_is_the_first(world) -> None:
    recipe = Recipe()
    algorithm = world.make(learner(world), recipe)
    result = train(algorithm, recipe, world.data(recipe, None), 0)
    assert algorithm.tried == [0]
    assert result.validation_score is None


def test_it_can_choose_where_the_recipe_never_validates(world) -> None:
    """The whole of a trial, whose recipe asks for no validation in training."""
    recipe = Recipe(validate_every=0)
    trial = world.trial(recipe, learner(world))
    algorithm, result = trial.train(lambda bank, refit: nullcontext(Attempt()))
    assert algorithm.tried == [0, 1, 2, 2]
    assert result.validation_score == pytest.approx(world.validator(algorithm)(40))


def test_nothing_is_chosen_on_what_is_trained_on_afterwards(world) -> None:
    recipe = Recipe(validate_every=5, refit=True)
    with pytest.raises(UsageError, match="chooses a setting on meta-validation") as caught:
        planned_phases(world.make(learner(world), recipe), recipe, 0)
    assert "refit = false" in caught.value.hint


@pytest.mark.parametrize(
    ("phase", "step", "tried"),
    [("choose", 1, [0, 1, 2, 2]), ("choose", 3, [0, 1, 2, 2]), ("second", 2, [])],
)
def test_a_training_killed_there_chooses_anew_and_ends_the_same(
    world, monkeypatch: pytest.MonkeyPatch, phase: str, step: int, tried: list[int]
) -> None:
    """And what was chosen before the last checkpoint isn't chosen again."""
    recipe = Recipe(steps=4)

    class Between(learner(world)):  # type: ignore[misc]
        def phases(self, given: Recipe) -> Sequence[Phase]:
            return [Episodic(given), *super().phases(given), Episodic(given, name="second")]

    def trained(**how: Any) -> tuple[Any, Any]:
        algorithm = world.make(Between, recipe)
        data = world.data(recipe, world.validator(algorithm))
        return train(algorithm, recipe, data, 3, **how), algorithm

    expected, undisturbed = trained()
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    checkpoints = Memory()
    with pytest.raises(KilledError):
        trained(checkpoints=checkpoints, monitor=interrupt_at(phase, step))
    result, algorithm = trained(checkpoints=checkpoints)
    assert result == expected
    assert algorithm.tried == tried
    state = undisturbed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in algorithm.state_dict().items())


@pytest.mark.parametrize("labels", [True, False])
def test_labels_can_be_withheld_from_batches(world, labels: bool) -> None:
    seen: list[Any] = []

    def loss(module: nn.Module, batch: Any, ctx: Context) -> Tensor:
        seen.append(batch.classes)
        return module(batch.data).square().mean()

    class Learner(world.Nearest):
        name = "learner"

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            return [Batches(recipe, self.backbone, loss, labels=labels)]

    recipe = Recipe(steps=2, batch_size=10)
    train(world.make(Learner, recipe), recipe, world.data(recipe), 0)
    assert len(seen) == 2
    assert all((classes is not None) == labels for classes in seen)
