"""One cell: train, select on validation, lock, test once, put into the result folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metabench.clock.timer import seconds
from metabench.engine.descent import Saved
from metabench.engine.progress import Monitor, Progress
from metabench.engine.trial import Attempt
from metabench.episodes.bank import ClassBank
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.curve import curve_csv
from metabench.runner.environment import run_info
from metabench.runner.shared import StoredPhases
from metabench.store.files import write_bytes, write_json
from metabench.store.keys import refit_key
from metabench.store.partial import Partial
from metabench.store.record import (
    CHECKPOINT,
    CURVE,
    DISJOINT,
    EPISODES,
    LOG,
    RUN,
    CellRecord,
    Result,
)
from metabench.store.results import EpisodeResults
from metabench.store.store import Store
from metabench.store.tensors import write_tensors

log = logging.getLogger("metabench.cell")


class TimedCheckpoints:
    """Training state that knows how long it took, over all attempts."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._started = seconds()
        self.earlier_s = 0.0

    def load(self) -> Saved | None:
        """The last state; its seconds count from now on."""
        saved = self._partial.load()
        if saved is not None:
            self.earlier_s = float(saved[0].get("train_s", 0.0))
        return saved

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace the last state."""
        train_s = self.earlier_s + seconds() - self._started
        self._partial.save(step, tensors, {**meta, "train_s": train_s})

    def keep(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep what a phase made."""
        train_s = self.earlier_s + seconds() - self._started
        self._partial.keep(name, tensors, {**meta, "train_s": train_s})

    def kept(self, name: str) -> Saved | None:
        """What was kept of a phase; the seconds up to there count, if later ones don't."""
        saved = self._partial.kept(name)
        if saved is not None:
            self.earlier_s = max(self.earlier_s, float(saved[0].get("train_s", 0.0)))
        return saved


@dataclass
class CellRun:
    """The run of one cell in this process.

    What decides a number is the engine's `Trial`; here is where state is kept and results go.

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
    _shared: list[StoredPhases] = field(default_factory=list)
    _checkpoints: list[TimedCheckpoints] = field(default_factory=list)

    def run(self, partial: Partial, log_file: Path) -> CellRecord:
        """Train, test and publish.

        Args:
            partial: keeps what a killed run goes on from.
            log_file: the cell's log, kept beside its results.
        """
        identity, trial = self.bench.identity(self.cell), self.bench.trial(self.cell)
        started = seconds()
        algorithm, trained = trial.train(lambda bank, refit: self._attempt(partial, bank, refit))
        train_s = seconds() - started + self._elsewhere_s()
        started = seconds()
        tested = trial.test(algorithm, self._beating(partial))
        test_s = seconds() - started
        log.info("trained in %.1f s, tested in %.1f s", train_s, test_s)
        outcome, results = tested.outcome, EpisodeResults.of(tested.outcome)
        disjoint = EpisodeResults.of(tested.disjoint) if tested.disjoint else None
        info = run_info(self.bench.device, self.command, train_s=train_s, test_s=test_s)

        def build(folder: Path) -> None:
            results.to_parquet(folder / EPISODES)
            if disjoint is not None:
                disjoint.to_parquet(folder / DISJOINT)
            write_tensors(folder / CHECKPOINT, tested.locked)
            write_bytes(folder / CURVE, curve_csv(trained.curve))
            write_json(folder / RUN, info.model_dump(mode="json"))
            with suppress(FileNotFoundError):  # taken over by another run: not worth a cell
                shutil.copyfile(log_file, folder / LOG)

        result = Result(
            score=outcome.score(self.cell.protocol.metric),
            episodes=len(outcome.targets),
            validation_score=trained.validation_score,
            selected_step=trained.selected_step,
            parameters=sum(p.numel() for p in algorithm.parameters()),
            train_items=trained.items,
            budget=trained.steps,
            figures=trained.figures,
            predictions=results.digest,
            disjoint=disjoint.digest if disjoint else "",
        )
        return self.store.publish(
            identity,
            build,
            inference=tested.inference,
            result=result,
            phases=self._shared[-1].used,  # of the training that was kept
        )

    def run_shared_phase(self, partial: Partial, log_file: Path) -> None:
        """Train the cell's shared phase, for all cells that ask for the same."""
        self.bench.trial(self.cell).train_shared_phase(
            lambda bank, refit: self._attempt(partial, bank, refit, log_file)
        )

    @contextmanager
    def _attempt(
        self, partial: Partial, bank: ClassBank, refit: bool, log_file: Path | None = None
    ) -> Iterator[Attempt]:
        """Where the training on a bank keeps its state; that of a refit has a place of its own."""
        with ExitStack() as cleanup:
            place = partial
            if refit:
                key = refit_key(self.bench.identity(self.cell).key)
                place = cleanup.enter_context(self.store.claim(key))
            shared = StoredPhases(self.store, self.bench, self.cell, bank, self.command, log_file)
            checkpoints = TimedCheckpoints(place)
            shared.earlier_s = lambda: checkpoints.earlier_s
            self._shared.append(shared)
            self._checkpoints.append(checkpoints)
            beating = self._beating(partial, place)
            yield Attempt(shared, checkpoints, beating, lambda done, total: place.beat())
            if refit:
                place.discard()

    def _beating(self, *places: Partial) -> Monitor:
        def monitor(progress: Progress) -> None:
            for place in places:
                place.beat()
            self.monitor(progress)

        return monitor

    def _elsewhere_s(self) -> float:
        """Seconds of interrupted attempts, less those of a shared phase that was trained here.

        The latter is accounted for beside the cell.
        """
        earlier = sum(checkpoints.earlier_s for checkpoints in self._checkpoints)
        return earlier - sum(shared.seconds for shared in self._shared)
