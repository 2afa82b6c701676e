"""A trial: which split serves for what, what a refit is, and the lock before the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from metabench.api.recipe import Recipe
from metabench.engine import trial as module
from metabench.engine.metrics import METRICS
from metabench.engine.trial import Attempt, Trial, refit_recipe
from metabench.episodes.bank import ClassBank
from metabench.errors import PluginError

RECIPE = Recipe(steps=6, validate_every=2, validation_episodes=5, lr=0.05)


@dataclass
class Kept:
    """The banks that were trained on, and what validation told."""

    banks: list[tuple[str, bool]] = field(default_factory=list)
    ticks: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def attempts(self, bank: ClassBank, refit: bool) -> Iterator[Attempt]:
        self.banks.append((bank.split, refit))
        yield Attempt(tick=lambda done, total: self.ticks.append((done, total)))


def scores(result: Any) -> dict[int, float]:
    return {row["step"]: row["validation"] for row in result.curve if row["validation"] is not None}


def test_the_selected_weights_are_those_that_did_best_on_validation(world) -> None:
    trial, kept = world.trial(RECIPE), Kept()
    algorithm, result = trial.train(kept.attempts)
    assert kept.banks == [("train", False)]
    assert set(scores(result)) == {2, 4, 6}
    assert result.validation_score == max(scores(result).values())
    assert scores(result)[result.selected_step] == result.validation_score
    again = world.evaluate(algorithm, 5, "validation")
    assert again.score("accuracy") == result.validation_score
    assert kept.ticks == [(5, 5)] * 3


def test_selection_goes_by_the_metric_of_the_protocol(world, monkeypatch) -> None:
    monkeypatch.setitem(METRICS, "accuracy", lambda predicted, targets: 1.0 * predicted[:, 0])
    algorithm, result = world.trial(RECIPE).train(Kept().attempts)
    first = world.evaluate(algorithm, 5, "validation").predicted[:, 0]
    assert result.validation_score == first.mean()


def test_a_refit_trains_on_both_splits_for_the_selected_steps(world) -> None:
    plain = world.trial(RECIPE).train(Kept().attempts)[1]
    kept = Kept()
    trial = world.trial(RECIPE.model_copy(update={"refit": True}))
    algorithm, result = trial.train(kept.attempts)
    assert kept.banks == [("train", False), ("train+validation", True)]
    assert trial.refit_bank.n_classes == 9 + 6
    assert algorithm.problem.train_classes == 15
    chosen = plain.selected_step
    assert (result.selected_step, result.steps) == (chosen, 6 + chosen)
    assert result.validation_score == plain.validation_score
    assert result.curve[: len(plain.curve)] == plain.curve
    assert result.items * plain.steps == plain.items * result.steps


def test_what_is_not_selected_is_not_refitted(world) -> None:
    result = world.trial(RECIPE).train(Kept().attempts)[1]
    refit = RECIPE.model_copy(update={"refit": True})
    assert refit_recipe(RECIPE, result) is None
    again = refit_recipe(refit, result)
    assert again is not None
    assert (again.steps, again.validate_every, again.select) == (result.selected_step, 0, "last")
    result.selected_step = None
    assert refit_recipe(refit, result) is None


def test_the_test_is_locked(world, monkeypatch: pytest.MonkeyPatch) -> None:
    trial: Trial = world.trial(RECIPE)
    algorithm = trial.build()
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    tested = trial.test(algorithm)
    assert tested.inference == "inductive"
    assert len(tested.outcome.targets) == world.protocol.episodes
    assert all(torch.equal(tested.locked[name], value) for name, value in before.items())

    def verify(algorithm: Any, *rest: Any, precision: str) -> str:
        with torch.no_grad():
            algorithm.backbone.net[1].bias += 1
        return "it changed"

    monkeypatch.setattr(module, "depends_on_other_queries", verify)
    with pytest.raises(PluginError, match=r"nearest changed backbone\.net\.1\.bias while"):
        trial.test(algorithm)
