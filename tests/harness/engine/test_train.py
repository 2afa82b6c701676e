"""Training: selection, resumption to the same bits, shared phases, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interruptions import KilledError, Memory, interrupt_at
from torch import Tensor, nn

from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, ItemBatch, PyTree
from metabench.api.phases import Batches, Collect, Episodic, Fit, Phase
from metabench.api.recipe import Recipe
from metabench.engine import descent
from metabench.engine.progress import Progress
from metabench.engine.supervised import pretraining
from metabench.engine.train import TrainingResult, planned_phases, train, train_shared_phase
from metabench.errors import NotANumberError, PluginError

States = dict[str, Tensor]


def learner(world, plan: Callable[[Any, Recipe], Sequence[Phase]] | None = None) -> type:
    """The nearest class mean, trained in the phases of a plan."""

    class Learner(world.Nearest):
        name = "learner"

        def build(self) -> None:
            self.register_buffer("found", torch.zeros(16))

        def phases(self, recipe: Recipe) -> Sequence[Phase]:
            planned: Sequence[Phase] = plan(self, recipe) if plan else super().phases(recipe)
            return planned

    return Learner


def classify(module: nn.Module, batch: ItemBatch, ctx: Context) -> Tensor:
    """Cross-entropy with noise from the context, so that resuming must put it back too."""
    noise = 0.1 * ctx.rng.normal(*batch.data.shape[1:])
    return F.cross_entropy(module(batch.data + noise), batch.classes)


def plain_batches(self: Any, recipe: Recipe) -> list[Phase]:
    module = pretraining(self.backbone, self.problem, recipe).module
    return [Batches(recipe, module, classify, name="supervised")]


def find_mean(self: Any) -> Fit:
    def fn(batches: Iterator[ItemBatch], ctx: Context) -> None:
        self.found.copy_(torch.cat([self.embed(batch.data) for batch in batches]).mean(0))

    return Fit(fn)


def shared_then_fit(self: Any, recipe: Recipe) -> list[Phase]:
    return [pretraining(self.backbone, self.problem, recipe), find_mean(self)]


def shared_then_episodes(self: Any, recipe: Recipe) -> list[Phase]:
    return [pretraining(self.backbone, self.problem, recipe), Episodic(recipe), find_mean(self)]


SETTINGS: dict[str, tuple[Any, Recipe, str]] = {
    "episodes, adam, best": (
        None,
        Recipe(steps=12, meta_batch=2, lr=1e-2, validate_every=3, validation_episodes=20),
        "episodic",
    ),
    "episodes, momentum, cosine, last": (
        None,
        Recipe(
            steps=12,
            optimizer="sgd",
            lr=1e-2,
            momentum=0.9,
            schedule="cosine",
            clip_norm=1.0,
            validate_every=5,
            validation_episodes=20,
            select="last",
        ),
        "episodic",
    ),
    "batches, best": (
        plain_batches,
        Recipe(steps=12, batch_size=20, lr=1e-2, validate_every=3, validation_episodes=20),
        "supervised",
    ),
    "shared, then fit": (shared_then_fit, Recipe(steps=12, batch_size=20), "pretrain"),
    "shared, then episodes": (
        shared_then_episodes,
        Recipe(steps=12, batch_size=20, validate_every=4, validation_episodes=20),
        "episodic",
    ),
}


def run(world, phases: Any, recipe: Recipe, **how: Any) -> tuple[TrainingResult, States]:
    algorithm = world.make(learner(world, phases), recipe)
    result = train(algorithm, recipe, world.data(recipe, world.validator(algorithm)), 3, **how)
    assert not algorithm.training
    return result, algorithm.state_dict()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("step", [1, 2, 7, 12])
@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_training_goes_on_to_the_same_bits(
    world, monkeypatch: pytest.MonkeyPatch, setting: str, step: int, every: int
) -> None:
    """Killed at a step, with the last checkpoint of some steps ago; then once more; then done."""
    phases, recipe, name = SETTINGS[setting]
    expected, state = run(world, phases, recipe)

    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    checkpoints = Memory(every)
    for again in sorted({step, 12}):
        with pytest.raises(KilledError):
            run(world, phases, recipe, checkpoints=checkpoints, monitor=interrupt_at(name, again))
    result, resumed = run(world, phases, recipe, checkpoints=checkpoints)
    assert result == expected
    assert resumed.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in resumed.items())


def test_checkpoints_are_written_and_used(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    checkpoints, recipe = Memory(), Recipe(steps=6)
    with pytest.raises(KilledError):
        run(world, None, recipe, checkpoints=checkpoints, monitor=interrupt_at("episodic", 5))
    assert checkpoints.steps == [1, 2, 3, 4]
    run(world, None, recipe, checkpoints=checkpoints)
    assert checkpoints.steps == [1, 2, 3, 4, 5, 6]


def test_the_curve_of_a_shared_phase_is_published_whole(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(steps=6, batch_size=20)

    class Shelf:
        def __init__(self) -> None:
            self.curves: list[list[dict[str, Any]]] = []

        def note(self, phase: Batches) -> None:
            self.noted = phase.name

        def find(self, phase: Batches) -> None:
            return None

        def publish(self, phase: Batches, tensors: States, curve: list[dict[str, Any]]) -> None:
            self.curves.append(list(curve))

    shelf, checkpoints = Shelf(), Memory()
    whole, _ = run(world, shared_then_fit, recipe, shared=shelf)
    with pytest.raises(KilledError):
        run(
            world,
            shared_then_fit,
            recipe,
            shared=shelf,
            checkpoints=checkpoints,
            monitor=interrupt_at("pretrain", 4),
        )
    resumed, _ = run(world, shared_then_fit, recipe, shared=shelf, checkpoints=checkpoints)
    assert [row["step"] for row in shelf.curves[0]] == [1, 2, 3, 4, 5, 6]
    assert shelf.curves[1] == shelf.curves[0]
    assert resumed == whole
    assert whole.curve == []


def test_a_shared_phase_by_itself_is_what_the_algorithm_then_finds(world) -> None:
    recipe = Recipe(steps=6, batch_size=20)

    class Shelf:
        tensors: States | None = None
        published = 0

        def note(self, phase: Batches) -> None:
            self.noted = phase.name

        def find(self, phase: Batches) -> States | None:
            return self.tensors

        def publish(self, phase: Batches, tensors: States, curve: list[Any]) -> None:
            self.tensors, self.published = tensors, self.published + 1

    shelf = Shelf()
    algorithm = world.make(learner(world, shared_then_fit), recipe)
    train_shared_phase(algorithm, recipe, world.data(recipe), 3, shelf)
    assert shelf.published == 1
    taken, state = run(world, shared_then_fit, recipe, shared=shelf)
    assert shelf.published == 1
    alone, expected = run(world, shared_then_fit, recipe)
    assert taken == alone
    assert (taken.steps, taken.items, taken.selected_step) == (6, 120, 6)
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    with pytest.raises(PluginError, match="no shared phase"):
        train_shared_phase(world.make(), recipe, world.data(recipe), 3, shelf)


class Scored:
    """A validation that gives known scores, and keeps the weights that it was asked about."""

    def __init__(self, algorithm: nn.Module, scores: list[float]) -> None:
        self.algorithm, self.scores = algorithm, iter(scores)
        self.states: list[States] = []
        self.episodes: list[int] = []

    def __call__(self, episodes: int) -> float:
        self.episodes.append(episodes)
        self.states.append({k: v.clone() for k, v in self.algorithm.state_dict().items()})
        return next(self.scores)


@pytest.mark.parametrize(
    ("select", "chosen", "score"), [("best", 1, 0.9), ("last", 4, 0.3)], ids=["best", "last"]
)
@pytest.mark.parametrize("phases", [None, plain_batches], ids=["episodes", "batches"])
def test_the_selected_weights_are_kept(
    world, phases: Any, select: str, chosen: int, score: float
) -> None:
    """Of equal scores the first; the last step is validated too, though 10 is no multiple of 3."""
    recipe = Recipe(
        steps=13, lr=1e-2, validate_every=3, validation_episodes=17, select=select, batch_size=20
    )
    algorithm = world.make(learner(world, phases), recipe)
    validate = Scored(algorithm, [0.2, 0.9, 0.5, 0.9, 0.3])
    result = train(algorithm, recipe, world.data(recipe, validate), 0)
    assert validate.episodes == [17] * 5
    steps = [3, 6, 9, 12, 13]
    assert [r["step"] for r in result.curve if r["validation"] is not None] == steps
    assert result.selected_step == steps[chosen]
    assert result.validation_score == score
    state = algorithm.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in validate.states[chosen].items())
    other = validate.states[chosen - 1]
    assert any(not torch.equal(v, state[name]) for name, v in other.items())


def test_no_steps_leave_it_untrained(world) -> None:
    recipe = Recipe(steps=0, validate_every=5)
    algorithm, untouched = world.make(), world.make()
    result = train(algorithm, recipe, world.data(recipe, world.validator(algorithm)), 0)
    assert result == TrainingResult()
    expected = untouched.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in algorithm.state_dict().items())


def test_training_counts_steps_and_items_over_all_phases(world) -> None:
    recipe = Recipe(steps=10, batch_size=20, meta_batch=2)
    result, _ = run(world, shared_then_episodes, recipe)
    assert result.steps == 20
    assert result.items == 10 * 20 + 10 * 2 * 4 * (2 + 3)
    assert [row["step"] for row in result.curve] == list(range(1, 11))
    assert {row["phase"] for row in result.curve} == {"episodic"}
    assert all(row["lr"] == 1e-3 and row["validation"] is None for row in result.curve)


def test_a_long_curve_is_thinned(world) -> None:
    recipe = Recipe(steps=250, optimizer="sgd", lr=1e-3, queries=1, shots=1)
    result, _ = run(world, None, recipe)
    assert [row["step"] for row in result.curve] == list(range(2, 251, 2))


def test_training_learns(world) -> None:
    recipe = Recipe(steps=120, lr=1e-2)
    algorithm = world.make()
    before = world.evaluate(algorithm, 100, "train").scores("accuracy").mean()
    train(algorithm, recipe, world.data(recipe), 0)
    assert world.evaluate(algorithm, 100, "train").scores("accuracy").mean() > before + 0.1


@pytest.mark.parametrize("phases", [None, plain_batches], ids=["episodes", "batches"])
def test_a_loss_that_is_no_number_is_an_error_that_says_where(world, phases: Any) -> None:
    recipe = Recipe(steps=5, optimizer="sgd", lr=1e30, batch_size=20)
    algorithm = world.make(learner(world, phases), recipe)
    with pytest.raises(
        NotANumberError, match=r"learner: the loss is .* at step \d of the"
    ) as caught:
        train(algorithm, recipe, world.data(recipe), 0)
    assert "lower the learning rates" in caught.value.hint
    assert caught.value.exit_code == 1


def test_weights_that_are_no_numbers_are_an_error(world) -> None:
    """The last update ruins them, after the last loss."""

    class Ruined(world.Nearest):
        def training_step(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
            loss = super().training_step(batch, ctx)
            if ctx.step == 4:
                self.backbone.net[1].weight.grad.fill_(torch.nan)
            return loss

    recipe = Recipe(steps=5)
    with pytest.raises(NotANumberError, match=r"backbone.net.1.weight is not finite after train"):
        train(world.make(Ruined), recipe, world.data(recipe), 0)


def test_clipping_bounds_the_gradient(world) -> None:
    recipe = Recipe(steps=1, optimizer="sgd", lr=1.0, clip_norm=1e-3)
    algorithm, untouched = world.make(), world.make()
    train(algorithm, recipe, world.data(recipe), 0)
    moved = [
        (a - b).detach().norm()
        for a, b in zip(algorithm.parameters(), untouched.parameters(), strict=True)
    ]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_context_says_where_training_stands(world) -> None:
    seen: list[tuple[str, str, int, int, int]] = []

    class Watching(world.Nearest):
        def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
            assert self.training
            seen.append((ctx.stage, ctx.phase, ctx.step, ctx.total, len(ctx.rng)))
            return super().training_loss(batch, ctx)

    recipe = Recipe(steps=3, meta_batch=2, validate_every=1, validation_episodes=2)
    algorithm = world.make(Watching)
    train(algorithm, recipe, world.data(recipe, world.validator(algorithm)), 0)
    assert seen == [("train", "episodic", step, 3, 2) for step in range(3)]


@pytest.mark.parametrize("labels", [False, True])
def test_fit_is_handed_the_whole_split_in_evaluation_mode(world, labels: bool) -> None:
    handed: list[ItemBatch] = []

    def phases(self: Any, recipe: Recipe) -> list[Phase]:
        def fn(batches: Iterator[ItemBatch], ctx: Context) -> None:
            assert not self.training
            assert not self.backbone.training
            assert not torch.is_grad_enabled()
            assert (ctx.stage, ctx.phase) == ("train", "fit")
            handed.extend(batches)

        return [Episodic(recipe), Fit(fn, labels=labels)]

    run(world, phases, Recipe(steps=2))
    ((data, classes),) = handed  # fewer than a chunk
    assert data.shape == (108, 1, 6, 6)
    assert classes is None if not labels else classes.tolist() == [i // 12 for i in range(108)]


def test_collect_hands_over_all_tasks_in_one(world) -> None:
    stored: list[PyTree] = []
    recipe = Recipe(steps=4, meta_batch=3)

    def phases(self: Any, recipe: Recipe) -> list[Phase]:
        def fn(batch: EpisodeBatch, ctx: Context) -> PyTree:
            return {"classes": batch.classes, "step": torch.full((3,), ctx.step)}

        return [Collect(fn, recipe, stored.append)]

    result, _ = run(world, phases, recipe)
    (artefact,) = stored
    assert artefact["classes"].shape == (12, 4)
    assert artefact["step"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({tuple(row) for row in artefact["classes"].tolist()}) > 6
    assert (result.steps, result.items) == (4, 4 * 3 * 4 * 5)


def test_phases_that_cannot_be_run_are_refused(world) -> None:
    recipe = Recipe(steps=1)
    nonsense = world.make(learner(world, lambda self, recipe: ["train, please"]))
    with pytest.raises(PluginError, match="'train, please', which is no phase"):
        planned_phases(nonsense, recipe, 0)
    late = world.make(
        learner(
            world,
            lambda self, recipe: [
                Episodic(recipe),
                pretraining(self.backbone, self.problem, recipe),
            ],
        )
    )
    with pytest.raises(PluginError, match="a shared phase must be the first"):
        planned_phases(late, recipe, 0)


def test_training_is_watched(world) -> None:
    told: list[Progress] = []
    recipe = Recipe(steps=4, validate_every=2, validation_episodes=5)
    run(world, None, recipe, monitor=told.append)
    assert [(p.phase, p.step, p.total) for p in told] == [("episodic", s, 4) for s in range(5)]
    assert told[1].validation is None
    assert told[-1].validation is not None
    assert all(p.loss is not None and p.loss > 0 for p in told[1:])
