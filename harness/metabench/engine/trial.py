"""A trial: one training run and its test; which split serves for what, selection, refit, lock."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm, Inference
from metabench.api.backbone import ItemSpec
from metabench.api.recipe import Recipe
from metabench.engine.build import Blueprint, training_bank
from metabench.engine.descent import Checkpoints, TrainingResult
from metabench.engine.evaluate import Outcome, Tick, evaluate
from metabench.engine.feed import TrainingData, Validate
from metabench.engine.gather import ItemStore
from metabench.engine.modes import EngineName, Engines, engines_of, using_engine
from metabench.engine.precision import Precision, computing_in
from metabench.engine.progress import Monitor, Progress, silent
from metabench.engine.train import SharedPhases, train, train_shared_phase
from metabench.engine.verify import depends_on_other_queries
from metabench.episodes.bank import ClassBank
from metabench.episodes.disjoint import DisjointSource
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.errors import PluginError

log = logging.getLogger("metabench.cell")

FEWEST_DISJOINT = 2
"""Disjoint episodes below which nothing can be said about their spread."""


@dataclass(frozen=True)
class Attempt:
    """Where a training keeps its state, and whom it tells. Nothing in it changes a number.

    Attributes:
        shared: where shared phases are found and put.
        checkpoints: what a killed training goes on from.
        monitor: is told how far it is.
        tick: is told how far a validation is.
    """

    shared: SharedPhases | None = None
    checkpoints: Checkpoints | None = None
    monitor: Monitor = silent
    tick: Tick | None = None


Attempts = Callable[[ClassBank, bool], AbstractContextManager[Attempt]]
"""`attempts(bank, refit)`: for the training on that bank; a context that ends with it."""


class Tested(NamedTuple):
    """What the test came to.

    Attributes:
        outcome: of the test episodes.
        disjoint: of the disjoint episodes; None where the data allow fewer than two.
        inference: as verified.
        locked: the weights that were tested.
    """

    outcome: Outcome
    disjoint: Outcome | None
    inference: Inference
    locked: dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One training run and its test.

    Attributes:
        blueprint: all that decides the algorithm before its training.
        item: what one item is.
        banks: the splits `train`, `validation` (where there is one) and `test`.
        device: where it is computed.
        engine: how the inner loop is run; `auto`: as the device and the algorithm need it.
        precision: in which networks are computed.
    """

    blueprint: Blueprint
    item: ItemSpec
    banks: Mapping[str, ClassBank]
    device: torch.device
    engine: str = "auto"
    precision: Precision = "float32"

    @property
    def engines(self) -> Engines:
        """How the inner loop is run in training and in the test."""
        return engines_of(self.blueprint.algorithm, self.engine, self.device.type)

    @contextmanager
    def computing(self, engine: EngineName) -> Iterator[None]:
        """Compute as this trial does, its inner loops in an engine."""
        with using_engine(engine), computing_in(self.precision, self.device.type):
            yield

    @property
    def recipe(self) -> Recipe:
        return self.blueprint.recipe

    @property
    def protocol(self) -> Protocol:
        return self.blueprint.protocol

    @property
    def training_bank(self) -> ClassBank:
        """The meta-training split as it is trained on."""
        return training_bank(self.banks["train"], self.recipe, self.protocol)

    @property
    def refit_bank(self) -> ClassBank:
        """Meta-training and meta-validation split as one, as a refit trains on them."""
        both = self.banks["train"].joined(self.banks["validation"])
        return training_bank(both, self.recipe, self.protocol)

    def build(self, bank: ClassBank | None = None) -> Algorithm:
        """The untrained algorithm; `bank`: what it will be trained on, if not the usual split."""
        return self.blueprint.build(self.item, bank or self.training_bank, self.device)

    def items(self, split: str) -> ItemStore:
        """The items of a split."""
        return self._store(self.banks[split])

    def episodes(self, split: str) -> EpisodeSource:
        """The protocol's episodes on a split."""
        bank = self.banks[split]
        return EpisodeSource(bank, self.protocol.shape, protocol_key(bank, self.protocol))

    # Training.

    def train(self, attempts: Attempts) -> tuple[Algorithm, TrainingResult]:
        """Train, select on validation and, if the recipe says so, train anew on both splits.

        Returns:
            the algorithm with the selected weights, and what its training took in all.
        """
        bank = self.training_bank
        with attempts(bank, False) as attempt:
            algorithm, result = self._train_on(bank, self.recipe, attempt, held_out=True)
        again = refit_recipe(self.recipe, result)
        if again is None:
            return algorithm, result
        log.info("step %d selected; training anew on train + validation", again.steps)
        bank = self.refit_bank
        with attempts(bank, True) as attempt:
            algorithm, second = self._train_on(bank, again, attempt, held_out=False)
        return algorithm, TrainingResult(
            steps=result.steps + second.steps,
            items=result.items + second.items,
            selected_step=second.selected_step,
            validation_score=result.validation_score,
            curve=result.curve + second.curve,
            figures=result.figures,
        )

    def train_shared_phase(self, attempts: Attempts) -> None:
        """Train the algorithm's shared phase and nothing else, unless somebody has."""
        bank = self.training_bank
        with attempts(bank, False) as attempt:
            assert attempt.shared is not None  # or it would be trained for nobody
            with computing_in(self.precision, self.device.type):
                train_shared_phase(
                    self.build(bank),
                    self.recipe,
                    TrainingData(self._store(bank), self.protocol),
                    self.blueprint.seed,
                    attempt.shared,
                    checkpoints=attempt.checkpoints,
                    monitor=attempt.monitor,
                )

    def _train_on(
        self, bank: ClassBank, recipe: Recipe, attempt: Attempt, *, held_out: bool
    ) -> tuple[Algorithm, TrainingResult]:
        """`held_out`: whether the meta-validation split is, if there is one."""
        algorithm = self.build(bank)
        # A refit trains on that split: nothing may look there for what to keep.
        validate = self._validate(algorithm, attempt.tick) if held_out else None
        data = TrainingData(self._store(bank), self.protocol, validate)
        if held_out and "validation" in self.banks:
            data.held_out = lambda: self.items("validation")
        with self.computing(self.engines.train):
            result = train(
                algorithm,
                recipe,
                data,
                self.blueprint.seed,
                shared=attempt.shared,
                checkpoints=attempt.checkpoints,
                monitor=attempt.monitor,
            )
        return algorithm, result

    def _validate(self, algorithm: Algorithm, tick: Tick | None) -> Validate | None:
        if "validation" not in self.banks:
            return None
        split = functools.cache(lambda: (self.episodes("validation"), self.items("validation")))

        def validate(episodes: int) -> float:
            source, items = split()  # not before they are asked for: most recipes don't
            with self.computing(self.engines.test):
                outcome = evaluate(algorithm, source, items, episodes, "validation", tick)
            return outcome.score(self.protocol.metric)

        return validate

    # Test.

    def test(self, algorithm: Algorithm, monitor: Monitor = silent) -> Tested:
        """Lock the weights, run test and disjoint episodes once, verify the inference mode.

        Raises:
            PluginError: the test changed the weights.
        """

        def tick(done: int, total: int) -> None:
            monitor(Progress("test", done, total))

        locked = {name: value.clone() for name, value in algorithm.state_dict().items()}
        source, items = self.episodes("test"), self.items("test")
        inference = algorithm.inference_mode(self.blueprint.algorithm_hp)
        with self.computing(self.engines.test):
            outcome = evaluate(algorithm, source, items, self.protocol.episodes, "test", tick)
            apart, disjoint = DisjointSource(self.banks["test"], self.protocol), None
            if apart.count >= FEWEST_DISJOINT:
                disjoint = evaluate(algorithm, apart, items, apart.count, "test")
            why = ""
            if inference == "inductive":
                why = depends_on_other_queries(algorithm, source, items, precision=self.precision)
        if why:
            log.warning("declared inductive, found transductive: %s", why)
            inference = "transductive"
        _check_unchanged(algorithm, locked)
        return Tested(outcome, disjoint, inference, locked)

    def _store(self, bank: ClassBank) -> ItemStore:
        return ItemStore(bank, self.item, self.device)


def refit_recipe(recipe: Recipe, result: TrainingResult) -> Recipe | None:
    """How it is trained anew, for as many steps as were selected; None: what came out stays."""
    if not recipe.refit or result.selected_step is None:
        return None
    changes = {"validate_every": 0, "select": "last", "refit": False}
    return recipe.model_copy(update={"steps": result.selected_step, **changes})


def _check_unchanged(algorithm: Algorithm, locked: dict[str, Tensor]) -> None:
    """Raise PluginError if the test changed the weights that were locked before it."""
    for name, value in algorithm.state_dict().items():
        if not torch.equal(value, locked[name]):
            raise PluginError(
                f"{algorithm.name} changed {name} while it was tested",
                "adapt and predict must leave the model as it is, and return what they learn",
            )
