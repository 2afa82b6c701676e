"""What a suite refers to: one file a run, so that runs at the same time can't harm each other.

A run notes, before it starts, which cells it stands for. A cell of a suite is told apart by its
labels (data set, protocol, algorithm, variant, backbone, seed, ...); the latest run that names it
says which key holds it now. Earlier files that are wholly superseded are deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from metabench.episodes.digest import canonical_json
from metabench.store import files
from metabench.store.machine import unique_name

log = logging.getLogger("metabench.store")


class SuiteCell(BaseModel):
    """A key, and the labels that tell the cell apart within its suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern="^[0-9a-f]{32}$")
    labels: dict[str, Any]

    @property
    def place(self) -> bytes:
        """The labels in one form, for comparing."""
        return canonical_json(self.labels)


class _Run(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    time_ns: int
    cells: list[SuiteCell]


def remember(root: Path, suite: str, cells: Iterable[SuiteCell]) -> None:
    """Note that a run of a suite refers to these cells.

    Raises:
        StoreError: it can't be written.
    """
    folder = root / "suites" / _folder_name(suite)
    run = _Run(suite=suite, time_ns=time.time_ns(), cells=list(cells))
    name = f"{run.time_ns:020d}-{unique_name()}.json"
    with files.storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = files.json_bytes(run.model_dump(mode="json"))
        files.replace_bytes(folder / name, data, unique_name())
        _drop_superseded(folder, name, run)


def cells_of(root: Path, suite: str) -> list[SuiteCell]:
    """The cells that runs of a suite refer to, each as the latest run has it; by labels."""
    latest: dict[bytes, SuiteCell] = {}
    for _, run in _runs(root / "suites" / _folder_name(suite)):
        latest.update({cell.place: cell for cell in run.cells})
    return [latest[place] for place in sorted(latest)]


def suites(root: Path) -> list[str]:
    """The names of the suites that were run, sorted."""
    folder = root / "suites"
    with files.storing(folder):
        return sorted(unquote(path.name) for path in files.entries(folder) if path.is_dir())


def _folder_name(suite: str) -> str:
    """A suite's name as that of one folder, whatever somebody called it."""
    if not suite:
        raise ValueError("a suite needs a name")
    return quote(suite, safe=" ").replace(".", "%2E")


def damaged(root: Path) -> list[Path]:
    """Files of runs that can't be read."""
    with files.storing(root):
        return [path for path in sorted(root.glob("suites/*/[0-9]*.json")) if _is_damaged(path)]


def _is_damaged(path: Path) -> bool:
    try:
        _read(path)
    except ValueError:
        return True
    return False


def _read(path: Path) -> _Run | None:
    """A run's file; None if it was superseded just now; ValueError if it can't be read."""
    try:
        return _Run.model_validate(files.read_json(path))
    except FileNotFoundError:
        return None


def _runs(folder: Path) -> list[tuple[str, _Run]]:
    """File names and contents, the oldest first; what can't be read is named and left out."""
    runs = []
    with files.storing(folder):
        for path in sorted(folder.glob("[0-9]*.json")):
            try:
                run = _read(path)
            except ValueError:
                log.warning("%s is corrupted; the cells that it named are left out", path)
                continue
            if run is not None:
                runs.append((path.name, run))
    return runs


def _drop_superseded(folder: Path, name: str, run: _Run) -> None:
    """Delete earlier files all of whose cells stand in this one too."""
    places = {cell.place for cell in run.cells}
    for other, earlier in _runs(folder):
        if other < name and all(cell.place in places for cell in earlier.cells):
            (folder / other).unlink(missing_ok=True)
