"""The result folder: finished cells, shared phases, failures, timings, and what suites refer to."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from metabench.errors import StoreError
from metabench.store import files, leftovers, partial, suites
from metabench.store.keys import SCHEMA, CellIdentity, PhaseIdentity, refit_key
from metabench.store.machine import unique_name
from metabench.store.record import (
    DISJOINT,
    EPISODES,
    LOG,
    RUN,
    TIMING,
    CellRecord,
    FailedCell,
    Failure,
    PhaseRecord,
    PhaseResult,
    Result,
    RunInfo,
    newer_version,
)
from metabench.store.results import EpisodeResults
from metabench.store.shelf import Shelf, check_key, keys_in, set_aside

log = logging.getLogger("metabench.store")

MARK = "store.json"
FAILURE = "failure.json"


class Store:
    """One result folder. Many processes, on many machines, may use it at once.

    Attributes:
        root: the folder.
        cells: finished cells by key.
        phases: finished shared phases by key.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells = Shelf(root, "cells", CellRecord)
        self.phases = Shelf(root, "phases", PhaseRecord)

    @classmethod
    def open(cls, root: Path | str, create: bool = True) -> Self:
        """Open a result folder.

        Args:
            root: the folder.
            create: make it where it's missing, and make sure that it can be written; otherwise
                it's only to be read.

        Raises:
            StoreError: there is none, it can't be used, or a newer version wrote it.
        """
        root = Path(root).absolute()
        mark = root / MARK
        with files.storing(root):
            if create:
                (root / "tmp").mkdir(parents=True, exist_ok=True)
                probe = root / "tmp" / f"probe-{unique_name()}"
                files.write_bytes(probe, b"metabench")
                probe.unlink()
                if not mark.exists():
                    files.replace_bytes(mark, files.json_bytes({"schema": SCHEMA}), unique_name())
            elif not mark.exists():
                raise StoreError(
                    f"there are no results in {root}",
                    "run a suite into it first, or name another result folder with --out",
                )
            try:
                value = files.read_json(mark)
            except ValueError:
                value = None
        schema = value.get("schema") if isinstance(value, dict) else None
        if type(schema) is not int or schema < 1:  # nor is a truth value a number
            raise StoreError(
                f"{mark} has no schema number",
                f'write {{"schema": {SCHEMA}}} into it, or choose another folder with --out',
            )
        if schema > SCHEMA:
            raise newer_version(f"result folder {root}", schema)
        return cls(root)

    # --- finished cells

    def find(self, key: str) -> CellRecord | None:
        """The verified record of a finished cell; what is corrupted is set aside, and None."""
        return self.cells.find(key)

    def records(self) -> Iterator[CellRecord]:
        """The verified records of all finished cells, by key."""
        return self.cells.records()

    def folder(self, key: str) -> Path:
        """Where a finished cell's files are, or would be."""
        return self.cells.folder(key)

    def publish(
        self,
        identity: CellIdentity,
        build: Callable[[Path], None],
        *,
        inference: str,
        result: Result,
        phases: Iterable[str] = (),
    ) -> CellRecord:
        """Put a finished cell in place, whole; see `Shelf.publish`. Clears its failure.

        Args:
            identity: what the cell is.
            build: writes `episodes.parquet`, `run.json` and the rest into the folder it's given.
            inference: inductive or transductive.
            result: what came out.
            phases: keys of the shared phases that it stands on.
        """

        def checked(folder: Path) -> None:
            build(folder)
            if not (folder / EPISODES).is_file():
                raise ValueError(f"a cell without {EPISODES} can't be published")

        record = self.cells.publish(
            identity, checked, inference=inference, result=result, phases=tuple(phases)
        )
        self._forget_failure(record.key)
        return record

    def episodes(self, key: str) -> EpisodeResults:
        """The predictions of a finished cell.

        Raises:
            StoreError: there is no such cell, or its file can't be read.
        """
        return _results(self.folder(key) / EPISODES)

    def disjoint(self, key: str) -> EpisodeResults | None:
        """The predictions of a finished cell for disjoint episodes; None where it has none.

        Raises:
            StoreError: its file can't be read.
        """
        path = self.folder(key) / DISJOINT
        return _results(path) if path.exists() else None

    def run_info(self, key: str) -> RunInfo:
        """How and on what a finished cell or shared phase ran; empty where that was lost."""
        folder = self.folder(key)
        path = (folder if folder.exists() else self.phases.folder(key)) / RUN
        try:
            return RunInfo.model_validate(files.read_json(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s can't be read: %s", path, error)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            set_aside(self.root, path, f"{RUN} of {key}", reason, f"{key}-{RUN}")
        return RunInfo()

    def remove(self, key: str) -> None:
        """Forget a cell, finished or failed, and its training state, so that it runs afresh."""
        self.cells.remove(key)
        self._forget_failure(key)
        with files.storing(self.root):
            for name in (key, refit_key(key)):
                for folder in partial.abandoned(self.root, name):
                    self._delete(folder)
                with contextlib.suppress(OSError):  # somebody is at work in it, or never was
                    (self.root / "partial" / name).rmdir()

    # --- shared phases

    def find_phase(self, key: str) -> PhaseRecord | None:
        """The verified record of a finished shared phase, or None."""
        return self.phases.find(key)

    def publish_phase(
        self, identity: PhaseIdentity, build: Callable[[Path], None], *, result: PhaseResult
    ) -> PhaseRecord:
        """Put a shared phase in place, whole; see `Shelf.publish`."""
        return self.phases.publish(identity, build, result=result)

    # --- failed cells

    def fail(
        self,
        identity: CellIdentity,
        failure: Failure,
        run: RunInfo | None = None,
        log_file: Path | None = None,
    ) -> None:
        """Note that a cell failed, in place of an earlier failure; it doesn't count as finished.

        Args:
            identity: what the cell is.
            failure: how it failed.
            run: on what it ran.
            log_file: its log so far, copied as `log.txt`.
        """
        key = identity.key
        cell = FailedCell(key=key, identity=identity, failure=failure, run=run or RunInfo())
        draft = self.root / "tmp" / unique_name()
        with files.storing(self.root):
            try:
                draft.mkdir(parents=True)
                files.write_json(draft / FAILURE, cell.model_dump(mode="json"))
                if log_file is not None and log_file.is_file():
                    shutil.copyfile(log_file, draft / LOG)
                (self.root / "failed").mkdir(exist_ok=True)
                while not files.publish_folder(draft, self.failure_folder(key)):
                    self._forget_failure(key)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def failure(self, key: str) -> FailedCell | None:
        """How a cell failed last; None if it didn't, or has succeeded since."""
        if self.folder(key).exists():
            return None
        folder = self.failure_folder(key)
        with files.storing(folder):
            try:
                return FailedCell.model_validate(files.read_json(folder / FAILURE))
            except FileNotFoundError:
                if not folder.exists():
                    return None
                reason = f"{FAILURE} is missing"
            except (ValueError, NotADirectoryError) as error:
                reason = str(error).splitlines()[0]
        set_aside(self.root, folder, f"failed cell {key}", reason)
        return None

    def failures(self) -> Iterator[FailedCell]:
        """The cells that failed and haven't succeeded since, by key."""
        for key in keys_in(self.root / "failed"):
            cell = self.failure(key)
            if cell is not None:
                yield cell

    def failure_folder(self, key: str) -> Path:
        """Where `failure.json` and `log.txt` of a failed cell are, or would be."""
        return self.root / "failed" / check_key(key)

    # --- timings

    def write_timing(self, key: str, machine: str, times: dict[str, Any]) -> None:
        """Keep a finished cell's times on one machine (`machine_id`), in place of earlier ones."""
        folder = self.folder(key) / TIMING
        with files.storing(folder):
            folder.mkdir(exist_ok=True)
            data = files.json_bytes(times)
            files.replace_bytes(folder / _timing_name(machine), data, unique_name())

    def read_timing(self, key: str, machine: str) -> dict[str, Any] | None:
        """A finished cell's times on a machine; None if there are none that can be read."""
        path = self.folder(key) / TIMING / _timing_name(machine)
        try:
            value = files.read_json(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("timing %s can't be read and is left out: %s", path, error)
            return None
        except ValueError as error:
            set_aside(self.root, path, f"{path.name} of {key}", str(error), f"{key}-{path.name}")
            return None
        return value if isinstance(value, dict) else None

    def timings(self, key: str) -> dict[str, dict[str, Any]]:
        """A finished cell's times by machine."""
        folder = self.folder(key) / TIMING
        machines = [p.stem for p in files.entries(folder) if p.suffix == ".json"]
        times = {machine: self.read_timing(key, machine) for machine in machines}
        return {machine: value for machine, value in times.items() if value is not None}

    # --- suites, training state, cleaning

    def remember_suite(
        self,
        name: str,
        cells: Iterable[suites.SuiteCell],
        asked: Iterable[str] | None = None,
    ) -> None:
        """Note which cells a run of a suite refers to; call it before they run.

        Args:
            asked: the settings of all cells that the suite asks for; see `suites.remember`.
        """
        suites.remember(self.root, name, cells, asked)

    def suite(self, name: str) -> list[suites.SuiteCell]:
        """The cells that a suite's table is made of, each as the latest run has it."""
        return suites.cells_of(self.root, name)

    def suites(self) -> list[str]:
        """The names of the suites that were run into this folder."""
        return suites.suites(self.root)

    def claim(self, key: str, stale_after: float = partial.STALE_AFTER_S) -> partial.Partial:
        """A place for the training state of a cell or shared phase, with what is left of it."""
        return partial.claim(self.root, key, stale_after)

    def unreferenced(self) -> list[leftovers.Leftover]:
        """What nothing refers to any more."""
        return leftovers.unreferenced(self)

    def clean(self, found: Iterable[leftovers.Leftover] | None = None) -> int:
        """Delete what `unreferenced` gave; returns the bytes freed."""
        freed = 0
        with files.storing(self.root):
            for leftover in self.unreferenced() if found is None else found:
                self._delete(leftover.path)
                freed += leftover.bytes
        return freed

    def _forget_failure(self, key: str) -> None:
        with files.storing(self.root):
            self._delete(self.failure_folder(key))

    def _delete(self, path: Path) -> None:
        if path.parent == self.root / "tmp":
            files.delete(path)
        elif os.path.lexists(path):
            files.remove_tree(path, self.root / "tmp", unique_name())


def _timing_name(machine: str) -> str:
    if not machine or not all(c.isalnum() or c in "-_" for c in machine):
        raise ValueError(f"{machine!r} is no machine's name")
    return f"{machine}.json"


def _results(path: Path) -> EpisodeResults:
    with files.storing(path):
        try:
            return EpisodeResults.from_parquet(path)
        except ValueError as error:
            raise StoreError(f"{path}: {error}", "run the suite again") from error
