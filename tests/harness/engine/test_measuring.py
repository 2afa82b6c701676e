"""Figures that an algorithm states of itself: means over tasks, which change and decide nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import KilledError, Memory, interrupt_at
from torch import Tensor

from metabench.api.context import Context
from metabench.api.items import EpisodeBatch
from metabench.api.phases import Episodic, Measure, Phase
from metabench.api.recipe import Recipe
from metabench.engine import descent
from metabench.engine.train import TrainingResult, train
from metabench.engine.trial import Attempt
from metabench.episodes.bank import ClassBank
from metabench.errors import NotANumberError, PluginError


def images(data: Tensor) -> list[bytes]:
    return [image.tobytes() for image in (data * 255).round().to(torch.uint8).numpy()]


def measuring(world, fn: Any) -> type:
    class Measuring(world.Nearest):
        name = "measuring"

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            few = Recipe(steps=3, meta_batch=2)
            return [Episodic(recipe), Measure(lambda *call: fn(self, *call), few, True)]

    return Measuring


def test_figures_are_means_over_tasks_of_meta_validation(world) -> None:
    seen: list[Tensor] = []
    classes = {image: c for c in range(6) for image in images(of_class(world, c))}

    def fn(self: Any, batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
        assert (ctx.stage, self.training) == ("validation", False)
        assert batch.queries.data.shape == (2, 40, 1, 6, 6)
        assert {classes[image] for image in images(batch.queries.data[0])} == set(
            batch.classes[0].tolist()
        )
        seen.append(batch.queries.data.mean((1, 2, 3, 4)))
        return {"brightness": seen[-1], "twice": 2 * seen[-1]}

    kind = measuring(world, fn)
    raw = type("Raw", (world.NearestRaw,), {"phases": kind.phases, "name": "raw"})
    recipe = Recipe(steps=1)
    data = world.data(recipe)
    data.held_out = lambda: world.store("validation")
    result = train(world.make(raw), recipe, data, 0)
    mean = float(torch.cat(seen).double().mean())
    assert result.figures == pytest.approx({"brightness": mean, "twice": 2 * mean})
    assert train(world.make(raw), recipe, world.data(recipe), 0).figures == {}
    assert (result.steps, result.items) == (1, 4 * 5)  # measuring is no training


@pytest.mark.parametrize("step", [1, 3])
def test_a_training_killed_while_it_measures_ends_with_the_same_figures(
    world, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def weights(self: Any, batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
        noise = ctx.rng.normal(1).flatten()
        return {"weight": self.backbone.net[1].weight.abs().mean() + noise}

    recipe = Recipe(steps=4)

    def trained_here(**how: Any) -> TrainingResult:
        data = world.data(recipe)
        data.held_out = lambda: world.store("validation")
        return train(world.make(measuring(world, weights), recipe), recipe, data, 3, **how)

    expected = trained_here()
    assert expected.figures.keys() == {"weight"}
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    checkpoints = Memory()
    with pytest.raises(KilledError):
        trained_here(checkpoints=checkpoints, monitor=interrupt_at("measure", step))
    assert trained_here(checkpoints=checkpoints) == expected


def of_class(world, number: int) -> Tensor:
    bank = world.banks["validation"]
    own = np.arange(bank.offsets[number], bank.offsets[number + 1])
    return torch.from_numpy(bank.items(own)).float() / 255


def spoil(algorithm: Any, batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
    with torch.no_grad():
        algorithm.backbone.net[1].bias.add_(1)
    return {}


@pytest.mark.parametrize(
    ("fn", "error", "said"),
    [
        (spoil, PluginError, r"changed backbone.net.1.bias in its phase 'measure'"),
        (
            lambda self, batch, ctx: {"ratio": torch.full((2,), torch.nan)},
            NotANumberError,
            "ratio is nan",
        ),
        (
            lambda self, batch, ctx: {"share": torch.ones(())},
            PluginError,
            r"share as \(\), not as one",
        ),
    ],
)
def test_measuring_changes_nothing_and_gives_numbers(world, fn: Any, error: Any, said: str) -> None:
    recipe = Recipe(steps=1)
    data = world.data(recipe)
    data.held_out = lambda: world.store("validation")
    with pytest.raises(error, match=said):
        train(world.make(measuring(world, fn)), recipe, data, 0)


def test_figures_of_two_phases_do_not_hide_each_other(world) -> None:
    def share(batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
        return {"share": torch.ones(2)}

    class Twice(world.Nearest):
        name = "twice"

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            return [Measure(share, recipe, name=name) for name in ("one", "two")]

    recipe = Recipe(steps=1, meta_batch=2)
    data = world.data(recipe)
    data.held_out = lambda: world.store("validation")
    with pytest.raises(PluginError, match="measures share in two phases"):
        train(world.make(Twice, recipe), recipe, data, 0)


def test_a_refit_keeps_the_figures_of_what_held_the_split_out(world) -> None:
    kind = measuring(world, lambda self, batch, ctx: {"steps": torch.ones(2)})
    recipe = Recipe(steps=4, validate_every=2, validation_episodes=5, refit=True)
    calls: list[str] = []

    def attempts(bank: ClassBank, refit: bool) -> Any:
        return nullcontext(Attempt(monitor=lambda told: calls.append(f"{refit} {told.phase}")))

    _, result = world.trial(recipe, kind).train(attempts)
    assert result.figures == {"steps": 1.0}
    assert "False measure" in calls
    assert "True measure" not in calls
