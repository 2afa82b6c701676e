"""One cell: train, select on validation, lock, test once, put into the result folder."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.recipe import Recipe
from metabench.engine.build import training_bank
from metabench.engine.descent import Saved, TrainingResult
from metabench.engine.evaluate import Outcome, evaluate
from metabench.engine.feed import TrainingData, Validate
from metabench.engine.progress import Monitor, Progress
from metabench.engine.train import train, train_shared_phase
from metabench.engine.verify import depends_on_other_queries
from metabench.episodes.bank import ClassBank
from metabench.errors import PluginError
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.curve import curve_csv
from metabench.runner.environment import run_info
from metabench.runner.shared import StoredPhases
from metabench.store.files import write_bytes, write_json
from metabench.store.keys import refit_key
from metabench.store.partial import Partial
from metabench.store.record import CHECKPOINT, CURVE, EPISODES, LOG, RUN, CellRecord, Result
from metabench.store.results import EpisodeResults
from metabench.store.store import Store
from metabench.store.tensors import write_tensors

log = logging.getLogger("metabench.cell")


@dataclass
class Trained:
    """An algorithm with its weights locked, and what it took.

    Attributes:
        phases: keys of the shared phases that it stands on.
        shared_s: seconds of a shared phase that was trained here.
        earlier_s: seconds of training by attempts that were interrupted.
    """

    algorithm: Algorithm
    result: TrainingResult
    phases: list[str]
    shared_s: float
    earlier_s: float


class TimedCheckpoints:
    """Training state that knows how long it took, over all attempts."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._started = time.perf_counter()
        self.earlier_s = 0.0

    def load(self) -> Saved | None:
        """The last state; its seconds count from now on."""
        saved = self._partial.load()
        if saved is not None:
            self.earlier_s = float(saved[0].get("train_s", 0.0))
        return saved

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace the last state."""
        seconds = self.earlier_s + time.perf_counter() - self._started
        self._partial.save(step, tensors, {**meta, "train_s": seconds})


@dataclass
class CellRun:
    """The run of one cell in this process.

    Attributes:
        bench, store, cell: what is run, and where its results go.
        command: the line that runs it again.
        monitor: is told how far it is.
    """

    bench: Workbench
    store: Store
    cell: Cell
    command: str
    monitor: Monitor

    def run(self, partial: Partial, log_file: Path) -> CellRecord:
        """Train, test and publish.

        Args:
            partial: keeps what a killed run goes on from.
            log_file: the cell's log, kept beside its results.
        """
        identity = self.bench.identity(self.cell)
        started = time.perf_counter()
        trained = self._train(partial)
        # A shared phase that this cell had to train by itself is accounted for beside it.
        train_s = time.perf_counter() - started - trained.shared_s + trained.earlier_s
        locked = {name: value.clone() for name, value in trained.algorithm.state_dict().items()}
        started = time.perf_counter()
        outcome, inference = self._test(trained.algorithm, partial)
        test_s = time.perf_counter() - started
        _check_unchanged(trained.algorithm, locked)
        log.info("trained in %.1f s, tested in %.1f s", train_s, test_s)
        results = EpisodeResults(outcome.targets, outcome.predicted, outcome.classes)
        info = run_info(self.bench.device, self.command, train_s=train_s, test_s=test_s)

        def build(folder: Path) -> None:
            results.to_parquet(folder / EPISODES)
            write_tensors(folder / CHECKPOINT, locked)
            write_bytes(folder / CURVE, curve_csv(trained.result.curve))
            write_json(folder / RUN, info.model_dump(mode="json"))
            with suppress(FileNotFoundError):  # taken over by another run: not worth a cell
                shutil.copyfile(log_file, folder / LOG)

        return self.store.publish(
            identity,
            build,
            inference=inference,
            result=_result(trained, results),
            phases=trained.phases,
        )

    def run_shared_phase(self, partial: Partial, log_file: Path) -> None:
        """Train the cell's shared phase, for all cells that ask for the same."""
        bank = self._training_bank()
        train_shared_phase(
            self.bench.build(self.cell, bank),
            self.cell.recipe,
            TrainingData(self.bench.store_of(bank, self.cell), self.cell.protocol),
            self.cell.seed,
            self._shared(bank, log_file),
            checkpoints=partial,
            monitor=self._beating(partial),
        )

    # Training.

    def _train(self, partial: Partial) -> Trained:
        recipe, bank = self.cell.recipe, self._training_bank()
        trained = self._trained_on(bank, recipe, partial)
        if not recipe.refit or trained.result.selected_step is None:
            return trained
        chosen = trained.result.selected_step
        log.info("step %d selected; training anew on train + validation", chosen)
        changes = {"steps": chosen, "validate_every": 0, "select": "last", "refit": False}
        both = self.bench.banks(self.cell)["train"].joined(
            self.bench.banks(self.cell)["validation"]
        )
        both = training_bank(both, recipe, self.cell.protocol)
        with self.store.claim(refit_key(self.bench.identity(self.cell).key)) as place:
            again = self._trained_on(both, recipe.model_copy(update=changes), place)
            place.discard()
        again.shared_s += trained.shared_s
        again.earlier_s += trained.earlier_s
        again.result.items += trained.result.items
        again.result.steps += trained.result.steps
        again.result.validation_score = trained.result.validation_score
        again.result.curve[:0] = trained.result.curve
        return again

    def _trained_on(self, bank: ClassBank, recipe: Recipe, partial: Partial) -> Trained:
        algorithm = self.bench.build(self.cell, bank)
        validate = self._validate(algorithm, partial) if recipe.validate_every else None
        data = TrainingData(self.bench.store_of(bank, self.cell), self.cell.protocol, validate)
        shared, checkpoints = self._shared(bank), TimedCheckpoints(partial)
        result = train(
            algorithm,
            recipe,
            data,
            self.cell.seed,
            shared=shared,
            checkpoints=checkpoints,
            monitor=self._beating(partial),
        )
        return Trained(algorithm, result, shared.used, shared.seconds, checkpoints.earlier_s)

    def _training_bank(self) -> ClassBank:
        bank = self.bench.banks(self.cell)["train"]
        return training_bank(bank, self.cell.recipe, self.cell.protocol)

    def _shared(self, bank: ClassBank, log_file: Path | None = None) -> StoredPhases:
        return StoredPhases(self.store, self.bench, self.cell, bank, self.command, log_file)

    def _validate(self, algorithm: Algorithm, partial: Partial) -> Validate | None:
        bank = self.bench.banks(self.cell).get("validation")
        if bank is None:
            return None
        source = self.bench.source(bank, self.cell)
        items = self.bench.store_of(bank, self.cell)

        def validate(episodes: int) -> float:
            outcome = evaluate(
                algorithm, source, items, episodes, "validation", lambda done, total: partial.beat()
            )
            return float(outcome.accuracies.mean())

        return validate

    # Test.

    def _test(self, algorithm: Algorithm, partial: Partial) -> tuple[Outcome, str]:
        """The test episodes, once, and the inference mode that was found."""
        bank = self.bench.banks(self.cell)["test"]
        source, items = self.bench.source(bank, self.cell), self.bench.store_of(bank, self.cell)

        def tick(done: int, total: int) -> None:
            partial.beat()
            self.monitor(Progress("test", done, total))

        outcome = evaluate(algorithm, source, items, self.cell.protocol.episodes, "test", tick)
        if self.cell.inference == "transductive":
            return outcome, "transductive"
        why = depends_on_other_queries(algorithm, source, items)
        if why:
            log.warning("declared inductive, found transductive: %s", why)
        return outcome, "transductive" if why else "inductive"

    def _beating(self, partial: Partial) -> Monitor:
        def monitor(progress: Progress) -> None:
            partial.beat()
            self.monitor(progress)

        return monitor


def _check_unchanged(algorithm: Algorithm, locked: dict[str, Tensor]) -> None:
    """Raise PluginError if the test changed the weights that were locked before it."""
    for name, value in algorithm.state_dict().items():
        if not torch.equal(value, locked[name]):
            raise PluginError(
                f"{algorithm.name} changed {name} while it was tested",
                "adapt and predict must leave the model as it is, and return what they learn",
            )


def _result(trained: Trained, results: EpisodeResults) -> Result:
    return Result(
        score=float(results.accuracies.mean()),
        episodes=len(results.targets),
        validation_score=trained.result.validation_score,
        selected_step=trained.result.selected_step,
        parameters=sum(p.numel() for p in trained.algorithm.parameters()),
        train_items=trained.result.items,
        budget=trained.result.steps,
    )
