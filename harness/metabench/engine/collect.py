"""What is made of whole tasks: artefacts to learn from, and figures of an algorithm by itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import leading_size
from metabench.api.phases import Collect, Learn, Measure, Phase
from metabench.engine.descent import Checkpoints, TrainingResult
from metabench.engine.feed import TrainingData
from metabench.engine.numerics import seed_all
from metabench.engine.progress import Monitor, Progress, silent
from metabench.engine.tasks import TaskFeed
from metabench.errors import NotANumberError, PluginError

log = logging.getLogger("metabench.train")

Examples = dict[str, Tensor]


class Collected:
    """What `Collect` phases made, for the `Learn` phases behind them.

    It may be large, so it is no part of each checkpoint, but is kept once beside them.
    """

    def __init__(
        self, phases: Sequence[Phase], checkpoints: Checkpoints | None, device: torch.device
    ) -> None:
        self._asked = {phase.collected for phase in phases if isinstance(phase, Learn)}
        self._checkpoints, self._device = checkpoints, device
        self._examples: dict[str, Examples] = {}

    def of(self, phase: Learn) -> Examples:
        """What that phase learns from; nothing where it takes no steps."""
        return self._examples[phase.collected] if phase.recipe.steps else {}

    def found(self, done: Sequence[Phase]) -> bool:
        """Whether all that these phases made is there, as far as anybody asks for it."""
        names = [phase.name for phase in done if isinstance(phase, Collect) and phase.recipe.steps]
        return all(self._kept(name) is not None for name in names if name in self._asked)

    def collect(
        self,
        algorithm: Algorithm,
        phase: Collect,
        data: TrainingData,
        seed: int,
        result: TrainingResult,
        monitor: Monitor,
    ) -> None:
        """Make an artefact, unless it is there, and hand it to the phase's `store`."""
        if not phase.recipe.steps:
            return
        items = self._kept(phase.name) if phase.name in self._asked else None
        if items is None:
            examples, items = collected(algorithm, phase, data, seed, monitor)
            self._examples[phase.name] = examples
            if phase.name in self._asked and self._checkpoints is not None:
                self._checkpoints.keep(phase.name, examples, {"items": items})
        if phase.store is not None:
            phase.store(self._examples[phase.name])
        if phase.name not in self._asked:
            del self._examples[phase.name]
        result.steps += phase.recipe.steps
        result.items += items

    def _kept(self, name: str) -> int | None:
        """Take what was kept of a phase; how many items it was made of, None: it isn't there."""
        saved = self._checkpoints.kept(name) if self._checkpoints is not None else None
        if saved is None:
            return None
        self._examples[name] = {key: value.to(self._device) for key, value in saved[1].items()}
        return int(saved[0]["items"])


def collected(
    algorithm: Algorithm, phase: Collect, data: TrainingData, seed: int, monitor: Monitor
) -> tuple[Examples, int]:
    """An artefact from many training tasks, and how many items they had, repeats counted."""
    feed = TaskFeed(algorithm, phase, data, seed)
    total, items = phase.recipe.steps, 0
    parts: list[Examples] = []
    for step in range(total):
        seed_all("step", seed, phase.name, step)
        tasks = feed.tasks(step)
        rng = EpisodeRandom(feed.key, tasks.numbers, data.store.device)
        made = phase.fn(tasks.batch, Context("train", rng, step, total, phase.name))
        parts.append({name: value.detach() for name, value in made.items()})
        _check_examples(algorithm, phase, parts)
        items += tasks.items
        monitor(Progress(phase.name, step + 1, total))
    # One after the other: all of it twice could be too much.
    names = list(parts[0])
    return {name: torch.cat([part.pop(name) for part in parts]) for name in names}, items


def examples_for(
    algorithm: Algorithm, phase: Learn, phases: Sequence[Phase], data: TrainingData, seed: int
) -> Examples:
    """A little of what a `Learn` phase learns from, so that single steps of it can be timed.

    One step of what collects it, made with the algorithm as it stands. Where that is less than a
    batch it is repeated, so that a step has its full size. Nothing is handed to `store`, which
    would change the algorithm: what a step costs doesn't hang on what it finds.

    Args:
        phases: all of the algorithm's, of which an earlier one collects.
    """
    [makes] = [p for p in phases if isinstance(p, Collect) and p.name == phase.collected]
    one = replace(makes, recipe=makes.recipe.model_copy(update={"steps": 1}))
    algorithm.eval()
    examples, _ = collected(algorithm, one, data, seed, silent)
    wanted = torch.arange(max(leading_size(examples), phase.recipe.batch_size))
    return {name: rows[wanted.to(rows.device) % len(rows)] for name, rows in examples.items()}


def _check_examples(algorithm: Algorithm, phase: Collect, parts: Sequence[Examples]) -> None:
    """Raise PluginError unless the last part has the names of the first, and one n in all."""
    first, last = parts[0], parts[-1]
    sizes = {len(value) if value.dim() else 0 for value in last.values()}
    if len(sizes) != 1 or 0 in sizes or last.keys() != first.keys():
        shapes = {name: tuple(value.shape) for name, value in last.items()}
        raise PluginError(
            f"{algorithm.name}: {phase.name!r} made {shapes or 'nothing'} of some tasks",
            "return tensors (n, ...) of the same names in each call, n the same in all of one",
        )


def _check_figures(
    algorithm: Algorithm, phase: Measure, figures: Mapping[str, Tensor], tasks: int
) -> None:
    """Raise PluginError unless there is one value a task under each name."""
    for name, values in figures.items():
        if values.shape != (tasks,):
            raise PluginError(
                f"{algorithm.name}: {phase.name!r} measured {name} as {tuple(values.shape)}, not "
                f"as one value for each of {tasks} tasks",
                "return tensors (B,)",
            )


def measure(
    algorithm: Algorithm,
    phase: Measure,
    data: TrainingData,
    seed: int,
    result: TrainingResult,
    monitor: Monitor,
) -> None:
    """Add the means of what the phase measures on tasks of the meta-validation split.

    Raises:
        NotANumberError: one of them is not finite.
        PluginError: measuring changed the weights, or returned anything but one value a task.
    """
    total = phase.recipe.steps
    if data.held_out is None or not total:
        return
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    held_out = TrainingData(data.held_out(), data.protocol)
    feed = TaskFeed(algorithm, phase, held_out, seed)
    sums: dict[str, float] = {}
    count = 0
    for step in range(total):
        seed_all("step", seed, phase.name, step)
        tasks = feed.tasks(step)
        rng = EpisodeRandom(feed.key, tasks.numbers, data.store.device)
        figures = phase.fn(tasks.batch, Context("validation", rng, step, total, phase.name))
        _check_figures(algorithm, phase, figures, len(tasks.numbers))
        if step and figures.keys() != sums.keys():
            raise PluginError(f"{algorithm.name}: {phase.name!r} measured other names in each call")
        for name, values in figures.items():
            sums[name] = sums.get(name, 0.0) + float(values.detach().double().sum())
        count += len(tasks.numbers)
        monitor(Progress(phase.name, step + 1, total))
    for name, value in algorithm.state_dict().items():
        if not torch.equal(value, before[name]):
            raise PluginError(f"{algorithm.name} changed {name} in its phase {phase.name!r}")
    for name, value in sums.items():
        if not math.isfinite(value):
            raise NotANumberError(f"{algorithm.name}: {name} is {value / count}")
        if name in result.figures:
            raise PluginError(f"{algorithm.name} measures {name} in two phases")
        result.figures[name] = value / count
        log.info("%s: %s %.4f", phase.name, name, value / count)
