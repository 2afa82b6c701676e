"""Training: the phases of an algorithm, one after the other, from the last checkpoint on."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.phases import (
    Batches,
    Choose,
    Collect,
    Fit,
    Learn,
    Measure,
    Phase,
)
from metabench.api.recipe import Recipe
from metabench.engine.chunks import that_fit
from metabench.engine.collect import Collected, measure
from metabench.engine.descent import (
    Checkpoints,
    Descends,
    Descent,
    Row,
    Saved,
    TrainingResult,
    under,
)
from metabench.engine.feed import BatchFeed, TrainingData
from metabench.engine.numerics import ITEMS_A_CHUNK, seed_all
from metabench.engine.progress import Monitor, Progress, silent
from metabench.errors import PluginError, UsageError

log = logging.getLogger("metabench.train")


class SharedPhases(Protocol):
    """Where shared phases are found and put, by what decides them."""

    def note(self, phase: Batches) -> None:
        """The algorithm stands on this phase, whether or not it is asked for again."""

    def find(self, phase: Batches) -> dict[str, Tensor] | None:
        """The trained module's tensors, if anybody has trained it."""

    def publish(self, phase: Batches, tensors: dict[str, Tensor], curve: list[Row]) -> None:
        """Keep them for every cell that asks for the same phase."""


class NothingShared:
    """Each algorithm trains for itself."""

    def note(self, phase: Batches) -> None:
        pass

    def find(self, phase: Batches) -> dict[str, Tensor] | None:
        return None

    def publish(self, phase: Batches, tensors: dict[str, Tensor], curve: list[Row]) -> None:
        pass


def train(
    algorithm: Algorithm,
    recipe: Recipe,
    data: TrainingData,
    seed: int,
    *,
    shared: SharedPhases | None = None,
    checkpoints: Checkpoints | None = None,
    monitor: Monitor = silent,
) -> TrainingResult:
    """Train `algorithm` in place, and leave the selected weights in it.

    Raises:
        NotANumberError: the loss, or a parameter after training, is not finite.
        PluginError: the algorithm's phases are not such as can be run.
    """
    phases = planned_phases(algorithm, recipe, seed)
    saved = checkpoints.load() if checkpoints is not None else None
    first, result, of_shared = 0, TrainingResult(), TrainingResult()
    collected = Collected(phases, checkpoints, data.store.device)
    if saved is not None and not collected.found(phases[: int(saved[0]["phase"])]):
        log.warning("what was collected is gone: training starts anew")
        saved = None
    if saved is not None:
        meta, tensors = saved
        first, before = int(meta["phase"]), TrainingResult(**meta["result"])
        # A shared phase, which is the first, has a training curve of its own.
        result, of_shared = (result, before) if is_shared(phases[first]) else (before, of_shared)
        algorithm.load_state_dict(under("algorithm.", tensors))
    shared = shared or NothingShared()
    for phase in phases:
        if isinstance(phase, Batches) and phase.shared:
            shared.note(phase)
    for number, phase in enumerate(phases[first:], start=first):
        if not isinstance(phase, Descends):
            _look(algorithm, phase, collected, data, seed, result, monitor)
            continue
        resumed = saved if number == first else None
        own = of_shared if is_shared(phase) else result
        examples = collected.of(phase) if isinstance(phase, Learn) else None
        descent = Descent(algorithm, phase, number, data, seed, own, checkpoints, monitor, examples)
        if is_shared(phase):
            train_shared(descent, shared, resumed)
            result.steps += descent.recipe.steps
            result.items += descent.recipe.steps * descent.feed.items_a_step
            result.selected_step = descent.recipe.steps or None
        else:
            descent.run(resumed)
    algorithm.eval()
    wanted = recipe.validate_every and recipe.steps
    if data.validate is not None and wanted and result.validation_score is None:
        # No phase was validated (shared ones are not): say at least how the weights do.
        result.validation_score = data.validate(recipe.validation_episodes)
    return result


def _look(
    algorithm: Algorithm,
    phase: Fit | Collect | Measure | Choose,
    collected: Collected,
    data: TrainingData,
    seed: int,
    result: TrainingResult,
    monitor: Monitor,
) -> None:
    """A phase that descends no loss: it looks at items or tasks with the network as at test."""
    algorithm.eval()
    if isinstance(phase, Fit):
        fit(algorithm, phase, data, seed)
    elif isinstance(phase, Choose):
        choose(phase, data, result, monitor)
    elif isinstance(phase, Collect):
        collected.collect(algorithm, phase, data, seed, result, monitor)
    else:
        measure(algorithm, phase, data, seed, result, monitor)


def train_shared_phase(
    algorithm: Algorithm,
    recipe: Recipe,
    data: TrainingData,
    seed: int,
    shared: SharedPhases,
    *,
    checkpoints: Checkpoints | None = None,
    monitor: Monitor = silent,
) -> None:
    """Train the algorithm's shared phase and nothing else, unless somebody has."""
    phase = planned_phases(algorithm, recipe, seed)[0]
    if not isinstance(phase, Batches) or not phase.shared:
        raise PluginError(f"{algorithm.name} has no shared phase")
    saved = checkpoints.load() if checkpoints is not None else None
    own = TrainingResult(**saved[0]["result"]) if saved is not None else TrainingResult()
    descent = Descent(algorithm, phase, 0, data, seed, own, checkpoints, monitor)
    train_shared(descent, shared, saved)


def planned_phases(algorithm: Algorithm, recipe: Recipe, seed: int) -> list[Phase]:
    """The algorithm's phases; modules that they build draw from a generator seeded by `seed`.

    Raises:
        PluginError: something is no phase, two have one name, a phase that is not the first is
            shared, a shared one could depend on the algorithm's own settings, or one learns from
            what none before it collects.
        UsageError: something is chosen on validation, and then trained on it.
    """
    seed_all("phases", seed)
    phases = list(algorithm.phases(recipe))
    names: set[str] = set()
    for phase in phases:
        if not isinstance(phase, Phase):
            raise PluginError(f"{algorithm.name}.phases() returned {phase!r}, which is no phase")
        if phase.name in names:
            raise PluginError(
                f"{algorithm.name} has two phases called {phase.name!r}",
                "give each a name of its own: what a phase draws hangs on it",
            )
        if isinstance(phase, Choose) and recipe.refit:
            raise UsageError(
                f"{algorithm.name} chooses a setting on meta-validation ({phase.name}), which a "
                "training on both splits would not leave it",
                "set refit = false in the recipe",
            )
        if isinstance(phase, Batches) and phase.shared:
            if names:
                raise PluginError(
                    f"{algorithm.name}: a shared phase must be the first",
                    "what it trains may not depend on what this algorithm did before",
                )
            _start_alike(algorithm, phase, seed)
        if isinstance(phase, Learn) and phase.recipe.steps:
            before = [p for p in phases if p.name in names and isinstance(p, Collect)]
            if not any(p.name == phase.collected and p.recipe.steps for p in before):
                raise PluginError(
                    f"{algorithm.name}: {phase.name!r} learns from {phase.collected!r}, which no "
                    "Collect phase before it makes",
                    "name the phase that collects in `collected`",
                )
        names.add(phase.name)
    return phases


def _start_alike(algorithm: Algorithm, phase: Batches, seed: int) -> None:
    """Give a shared phase's own layers weights that depend on nothing but the seed.

    What an algorithm drew before it made them would otherwise reach every other algorithm.

    Raises:
        PluginError: a layer outside the backbone cannot be drawn anew, or the loss has a state.
    """
    if hasattr(phase.loss, "__self__"):
        raise PluginError(
            f"{algorithm.name}: the loss of a shared phase must be a plain function",
            "as a method it could depend on the algorithm's own settings",
        )
    seed_all("shared", phase.name, seed)
    of_backbone = set(algorithm.backbone.modules())
    for layer in phase.module.modules():
        if layer in of_backbone:
            continue
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise PluginError(
                f"{algorithm.name}: {type(layer).__name__} in a shared phase has parameters and "
                "no reset_parameters()",
                "write one that draws them, so that every algorithm starts from the same",
            )


def is_shared(phase: Phase) -> bool:
    """Whether the phase is trained once for all cells that ask for it."""
    return isinstance(phase, Batches) and phase.shared


def train_shared(descent: Descent, shared: SharedPhases, resumed: Saved | None) -> None:
    """Take a shared phase's weights from where they are kept, or train and keep them."""
    phase = descent.phase
    assert isinstance(phase, Batches)
    tensors = shared.find(phase)
    if tensors is None:
        descent.run(resumed)
        tensors = {k: v.detach().clone() for k, v in phase.module.state_dict().items()}
        shared.publish(phase, tensors, descent.result.curve)
    # Loaded also by the cell that trained it, so that nothing depends on which one did.
    phase.module.load_state_dict(tensors)


def fit(algorithm: Algorithm, phase: Fit, data: TrainingData, seed: int) -> None:
    """Hand the whole training split to the phase's function, as much at once as is embedded."""
    feed = BatchFeed(data, Recipe(), seed, phase.name)
    rng = EpisodeRandom(feed.key, [0], data.store.device)
    with torch.no_grad():
        few = min(2, data.store.bank.n_items)
        items = data.store.gather(np.arange(few))
        device_type = data.store.device.type
        size = that_fit(lambda: algorithm.backbone(items), few, device_type, ITEMS_A_CHUNK)
        seed_all("step", seed, phase.name, 0)
        phase.fn(feed.everything(phase.labels, size), Context("train", rng, phase=phase.name))


def choose(phase: Choose, data: TrainingData, result: TrainingResult, monitor: Monitor) -> None:
    """Put the candidate in place that does best on meta-validation."""
    if data.validate is None:
        log.info("%s: the first candidate, as there is no meta-validation split", phase.name)
        phase.put(0)
        return
    scores: list[float] = []
    for number in range(phase.candidates):
        phase.put(number)
        scores.append(data.validate(phase.episodes))
        row = {"phase": phase.name, "step": number + 1, "loss": None, "lr": None}
        result.curve.append({**row, "validation": scores[-1]})
        monitor(Progress(phase.name, number + 1, phase.candidates, validation=max(scores)))
    result.validation_score = max(scores)
    phase.put(scores.index(result.validation_score))
