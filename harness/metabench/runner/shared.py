"""Shared phases in the result folder: trained once, found by everyone who asks for the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from metabench.api.phases import Batches
from metabench.clock.timer import seconds
from metabench.engine.descent import Row
from metabench.episodes.bank import ClassBank
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.curve import curve_csv
from metabench.runner.environment import run_info
from metabench.store.files import write_bytes, write_json
from metabench.store.record import CHECKPOINT, CURVE, LOG, RUN, PhaseResult
from metabench.store.store import Store
from metabench.store.tensors import read_tensors, write_tensors


class StoredPhases:
    """Finds and publishes the shared phases of one cell.

    Args:
        store, bench, cell: where, with what and for which cell.
        bank: what they are trained on.
        command: the line that runs the cell again.
        log_file: the log of a job that trains one, kept beside it.

    Attributes:
        used: keys of the phases that the cell stands on.
        seconds: what training one took, with attempts that were interrupted.
        earlier_s: tells the seconds of those attempts.
    """

    def __init__(
        self,
        store: Store,
        bench: Workbench,
        cell: Cell,
        bank: ClassBank,
        command: str,
        log_file: Path | None = None,
    ) -> None:
        self._store, self._bench, self._cell, self._bank = store, bench, cell, bank
        self._command, self._log_file = command, log_file
        self._started = seconds()
        self.used: list[str] = []
        self.seconds = 0.0
        self.earlier_s: Callable[[], float] = float

    def note(self, phase: Batches) -> None:
        """The cell stands on this phase, whether or not it is asked for again."""
        self.used.append(self._key(phase))

    def find(self, phase: Batches) -> dict[str, Tensor] | None:
        """The trained module's tensors, if they are in the result folder."""
        key = self._key(phase)
        self._started = seconds()
        if self._store.find_phase(key) is None:
            return None
        tensors, _ = read_tensors(self._store.phases.folder(key) / CHECKPOINT)
        return {name: tensor.to(self._bench.device) for name, tensor in tensors.items()}

    def publish(self, phase: Batches, tensors: dict[str, Tensor], curve: list[Row]) -> None:
        """Put them into the result folder."""
        identity = self._bench.phase_identity(self._cell, phase, self._bank)
        steps = phase.recipe.steps
        items = min(phase.recipe.batch_size, self._bank.n_items * self._bank.views)
        self.seconds = seconds() - self._started + self.earlier_s()
        info = run_info(self._bench.device, self._command, train_s=self.seconds)

        def build(folder: Path) -> None:
            write_tensors(folder / CHECKPOINT, tensors)
            write_bytes(folder / CURVE, curve_csv(curve))
            write_json(folder / RUN, info.model_dump(mode="json"))
            if self._log_file is not None:
                with suppress(FileNotFoundError):  # taken over by another run
                    shutil.copyfile(self._log_file, folder / LOG)

        result = PhaseResult(train_items=steps * items, budget=steps)
        self._store.publish_phase(identity, build, result=result)

    def _key(self, phase: Batches) -> str:
        return self._bench.phase_identity(self._cell, phase, self._bank).key
