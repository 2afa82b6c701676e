"""One phase of gradient descent: steps, training curve, validation, selection, checkpoints."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import ItemBatch
from metabench.api.phases import Batches, Episodic, Learn
from metabench.engine.feed import BatchFeed, EpisodeFeed, ExampleFeed, TrainingData
from metabench.engine.graphs import Step, training_step_of
from metabench.engine.modes import capturing
from metabench.engine.numerics import seed_all
from metabench.engine.optim import (
    load_optimizer_tensors,
    lr_at,
    make_optimizer,
    optimizer_tensors,
    set_lr,
)
from metabench.engine.progress import Monitor, Progress
from metabench.errors import NotANumberError

log = logging.getLogger("metabench.train")

CHECKPOINT_SECONDS = 20.0
"""How much work a kill may cost. When a checkpoint is written changes no number."""
CHECKPOINT_VARIABLE = "METABENCH_CHECKPOINT_SECONDS"
"""The environment variable that says otherwise (a slow disk, a machine that may go at any time)."""

CURVE_ROWS = 100
"""About how many rows a phase adds to the training curve."""

Descends = Episodic | Batches | Learn
"""The phases that are trained by steps; the others look at items or tasks as a test does."""

Saved = tuple[dict[str, Any], dict[str, Tensor]]
Row = dict[str, Any]
"""A row of the training curve: phase, step, loss, lr, validation."""


class Checkpoints(Protocol):
    """Where training state is kept, so that a killed run goes on."""

    def load(self) -> Saved | None:
        """The last state that was saved whole: (facts, tensors)."""

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace the last state."""

    def keep(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep what a phase of that name made, beside the last state, to the end of training."""

    def kept(self, name: str) -> Saved | None:
        """What was kept of that phase, if it is there whole."""


@dataclass
class TrainingResult:
    """What training came to.

    Attributes:
        steps: steps done, over all phases.
        items: items seen, repeats counted.
        selected_step: the step of the last phase whose weights were kept; None: untrained.
        validation_score: of that step; None without validation.
        curve: the training curve.
        figures: what the algorithm measured of itself, by name.
    """

    steps: int = 0
    items: int = 0
    selected_step: int | None = None
    validation_score: float | None = None
    curve: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


class Descent:
    """The loop of one phase that is trained by steps.

    Every step is seeded by its own number and reads what that number says, so a phase that goes
    on from a checkpoint computes the same digits as one that was never stopped.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        phase: Descends,
        number: int,
        data: TrainingData,
        seed: int,
        result: TrainingResult,
        checkpoints: Checkpoints | None,
        monitor: Monitor,
        examples: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`examples`: what a `Learn` phase learns from."""
        self.algorithm, self.phase, self.number = algorithm, phase, number
        self.recipe, self.seed = phase.recipe, seed
        self.result, self.checkpoints, self.monitor = result, checkpoints, monitor
        self.validate = None if isinstance(phase, Batches) and phase.shared else data.validate
        self.module: nn.Module = phase.module if isinstance(phase, Batches) else algorithm
        device = data.store.device
        if isinstance(phase, Episodic):
            self.feed: EpisodeFeed | BatchFeed | ExampleFeed = EpisodeFeed(
                data, self.recipe, seed, phase.name
            )
        elif isinstance(phase, Batches):
            self.module.to(device)
            self.feed = BatchFeed(data, self.recipe, seed, phase.name)
        else:
            assert examples is not None
            self.feed = ExampleFeed(examples, self.recipe, seed, phase.name)
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.recipe, trainable) if trainable else None
        self.trainable = trainable
        self.device = device
        self._captured: Step | None = None
        self.best: dict[str, Tensor] | None = None
        self.best_score: float | None = None
        self.best_step = 0
        self.last_loss: float | None = None

    def run(self, saved: Saved | None) -> None:
        """Train to the end of the phase, from a checkpoint of this phase or from the start."""
        start = 0 if saved is None else self._restore(*saved)
        if start:
            log.info(
                "%s phase goes on from step %d of %d", self.phase.name, start, self.recipe.steps
            )
        self.monitor(Progress(self.phase.name, start, self.recipe.steps))
        every, checkpointed = checkpoint_seconds(), time.monotonic()
        for step in range(start, self.recipe.steps):
            loss = self._step(step)
            self._look(step, loss)
            if time.monotonic() - checkpointed >= every:
                self._save(step + 1)
                checkpointed = time.monotonic()
        self._finish()

    # One step.

    def _step(self, step: int) -> Tensor:
        self.module.train()
        seed_all("step", self.seed, self.phase.name, step)
        if self.optimizer is not None:
            set_lr(self.optimizer, lr_at(self.recipe, step))
            self.optimizer.zero_grad()
        loss = self._backward(step)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trainable, self.recipe.clip_norm)
        if self.optimizer is not None:
            self.optimizer.step()
        return loss

    def _backward(self, step: int) -> Tensor:
        total, name = self.recipe.steps, self.phase.name
        if isinstance(self.feed, EpisodeFeed):
            numbers, batch = self.feed.batch(step)
            rng = EpisodeRandom(self.feed.key, numbers, self.device)
            ctx = Context("train", rng, step, total, name)
            if not capturing():
                return self.algorithm.training_step(batch, ctx)
            if self._captured is None:
                self._captured = training_step_of(self.algorithm, self.device)
            return self._captured(batch, ctx)
        rng = EpisodeRandom(self.feed.key, [step], self.device)
        ctx = Context("train", rng, step, total, name)
        if isinstance(self.feed, ExampleFeed):
            assert isinstance(self.phase, Learn)
            loss = self.phase.loss(self.feed.batch(step), ctx)
        else:
            assert isinstance(self.phase, Batches)
            data, classes = self.feed.batch(step)
            known = classes if self.phase.labels else None
            loss = self.phase.loss(self.module, ItemBatch(data, known), ctx)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    # After a step: the training curve, validation, selection.

    def _look(self, step: int, loss: Tensor) -> None:
        done, total = step + 1, self.recipe.steps
        score = self._validated(done)
        if score is None and done % max(1, total // CURVE_ROWS) and done != total:
            return
        self.last_loss = float(loss)
        if not math.isfinite(self.last_loss):
            raise NotANumberError(
                f"{self.algorithm.name}: the loss is {self.last_loss} at step {done} of the "
                f"{self.phase.name} phase",
                "lower the learning rates, or set clip_norm in the recipe",
            )
        lr = lr_at(self.recipe, step)
        row = {"phase": self.phase.name, "step": done, "loss": self.last_loss, "lr": lr}
        self.result.curve.append({**row, "validation": score})
        self.monitor(Progress(self.phase.name, done, total, self.last_loss, self.best_score))

    def _validated(self, done: int) -> float | None:
        every = self.recipe.validate_every
        if self.validate is None or not every or (done % every and done != self.recipe.steps):
            return None
        score = self.validate(self.recipe.validation_episodes)
        keep = self.recipe.select == "last" or self.best_score is None or score > self.best_score
        if keep:
            self.best_score, self.best_step = score, done
            if self.recipe.select == "best":
                self.best = self._tensors()
        return score

    def _finish(self) -> None:
        if self.best is not None:
            self._load(self.best)
        for name, value in self.module.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise NotANumberError(f"{self.algorithm.name}: {name} is not finite after training")
        self.result.steps += self.recipe.steps
        self.result.items += self.recipe.steps * self.feed.items_a_step
        if self.recipe.steps:
            chosen = self.best_step if self.best_score is not None else self.recipe.steps
            self.result.selected_step = chosen
            self.result.validation_score = self.best_score

    # State.

    def _tensors(self) -> dict[str, Tensor]:
        """Algorithm and module, copied: they may share memory, and training goes on."""
        parts = {f"algorithm.{k}": v for k, v in self.algorithm.state_dict().items()}
        if self.module is not self.algorithm:
            parts |= {f"module.{k}": v for k, v in self.module.state_dict().items()}
        return {name: value.detach().clone() for name, value in parts.items()}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.algorithm.load_state_dict(under("algorithm.", tensors))
        if self.module is not self.algorithm:
            self.module.load_state_dict(under("module.", tensors))

    def _save(self, done: int) -> None:
        if self.checkpoints is None:
            return
        tensors = self._tensors()
        if self.optimizer is not None:
            state = optimizer_tensors(self.optimizer)
            tensors |= {f"optimizer.{name}": value for name, value in state.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
        meta = {
            "phase": self.number,
            "step": done,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "result": asdict(self.result),
        }
        self.checkpoints.save(done, tensors, meta)

    def _restore(self, meta: dict[str, Any], tensors: dict[str, Tensor]) -> int:
        self._load(tensors)
        if self.optimizer is not None:
            load_optimizer_tensors(self.optimizer, under("optimizer.", tensors))
        best = under("best.", tensors)
        self.best = best or None
        self.best_score, self.best_step = meta["best_score"], int(meta["best_step"])
        return int(meta["step"])


def checkpoint_seconds() -> float:
    """Seconds between checkpoints: METABENCH_CHECKPOINT_SECONDS, or 20."""
    try:
        return float(os.environ[CHECKPOINT_VARIABLE])
    except (KeyError, ValueError):
        return CHECKPOINT_SECONDS


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
