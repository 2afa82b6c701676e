"""What a suite refers to: one file a run, so that runs at the same time can't harm each other.

A run notes, before it starts, which cells it stands for. A cell of a suite is told apart by its
labels (data set, protocol, algorithm, variant, backbone, seed, ...); the latest run that names it
says which key holds it now. Earlier files that are wholly superseded are deleted.

A table is of its suite as the latest run found it. Runs of one and the same suite add up, whatever
each was narrowed to or changed by `--set`. Where the suite asks for something else than before
(its file was edited, or it is another file of that name), of earlier runs only those cells stay
that it still asks for with the same settings. The others are counted in a warning; in the result
folder they stay finished. Of what was noted without settings nobody can tell, so it stays.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from metabench.episodes.digest import canonical_json, digest
from metabench.store import files
from metabench.store.machine import unique_name
from metabench.store.shelf import CORRUPT, set_aside

log = logging.getLogger("metabench.store")

_OF = "@"
"""Between the suite and the file in the name of what was set aside; no folder's name has it."""


class SuiteCell(BaseModel):
    """A key, and the labels that tell the cell apart within its suite.

    Attributes:
        settings: digest of all that the suite says of the cell; empty where nobody knows.
        command: the line that runs it again as a cell of this suite.
    """

    # What a later version adds is no reason to call the file corrupted.
    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(pattern="^[0-9a-f]{32}$")
    labels: dict[str, Any]
    settings: str = ""
    command: str = ""

    @property
    def place(self) -> bytes:
        """The labels in one form, for comparing."""
        return canonical_json(self.labels)


class _Run(BaseModel):
    """What stands in a run's file.

    Attributes:
        asks_for: digest of what the whole suite asked for; empty where nobody knows.
        whole: whether the run had all of that.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    suite: str
    time_ns: int
    asks_for: str = ""
    whole: bool = False
    cells: list[SuiteCell]


def remember(
    root: Path, suite: str, cells: Iterable[SuiteCell], asked: Iterable[str] | None = None
) -> None:
    """Note that a run of a suite refers to these cells.

    Args:
        asked: the settings of all cells that the suite asks for, with no filter; None where that
            can't be told: then no cell of an earlier run is forgotten.

    Raises:
        StoreError: it can't be written.
    """
    folder = root / "suites" / _folder_name(suite)
    now = time.time_ns()
    name = f"{now:020d}-{unique_name()}.json"
    wanted = None if asked is None else set(asked)
    asks_for = "" if wanted is None else digest(sorted(wanted))
    named = {cell.place: cell for cell in cells}
    whole = wanted is not None and wanted <= {cell.settings for cell in named.values()}
    with files.storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [(other, run) for other, run in _runs(root, folder) if other < name]
        of_another = [
            run for _, run in earlier if wanted is not None and run.asks_for not in ("", asks_for)
        ]
        before = {cell.place: cell for run in of_another for cell in run.cells}
        stay = {"", *(wanted or ())}
        noted = {place: cell for place, cell in before.items() if cell.settings in stay}
        noted |= named
        run = _Run(
            suite=suite,
            time_ns=now,
            asks_for=asks_for,
            whole=whole,
            cells=list(noted.values()),
        )
        data = files.json_bytes(run.model_dump(mode="json"))
        files.replace_bytes(folder / name, data, unique_name())
        for other, run in earlier:
            if run in of_another or all(cell.place in noted for cell in run.cells):
                (folder / other).unlink(missing_ok=True)
    if gone := len(before.keys() - noted.keys()):
        log.warning(
            "suite %s does not ask for what it did when it was run before (it, metabench or a"
            " plugin was changed): %s of then left its table, but not the result folder",
            suite,
            "1 cell" if gone == 1 else f"{gone} cells",
        )


def cells_of(root: Path, suite: str) -> list[SuiteCell]:
    """The cells that a suite's table is made of, each as the latest run has it; by labels."""
    latest: dict[bytes, SuiteCell] = {}
    for _, run in _runs(root, root / "suites" / _folder_name(suite)):
        latest.update({cell.place: cell for cell in run.cells})
    if _lost(root, _folder_name(suite)):
        log.warning(
            "cells of suite %s may be missing here: a list of them was corrupted; run all of the"
            " suite again to have them back (finished ones are reused)",
            suite,
        )
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
    """Files of runs that can't be read or were set aside, until all of their suite is run again."""
    with files.storing(root):
        there = [path for path in sorted(root.glob("suites/*/[0-9]*.json")) if _is_damaged(path)]
        return there + _lost(root, "*")


def _lost(root: Path, folder: str) -> list[Path]:
    """What was set aside of a suite's notes, or of any suite's, and isn't made up for."""
    aside = sorted((root / CORRUPT).glob(f"{folder}{_OF}[0-9]*.json-*"))
    return [path for path in aside if not _is_superseded(root, path)]


def _is_damaged(path: Path) -> bool:
    try:
        _read(path)
    except ValueError:
        return True
    return False


def _is_superseded(root: Path, aside: Path) -> bool:
    """Whether the whole suite of a file that was set aside was run again: it noted all cells."""
    folder, _, name = aside.name.rpartition(_OF)
    later = [p for p in (root / "suites" / folder).glob("[0-9]*.json") if p.name > name]
    for path in later:
        with contextlib.suppress(ValueError):
            run = _read(path)
            if run is not None and run.whole:
                return True
    return False


def _read(path: Path) -> _Run | None:
    """A run's file; None if it was superseded just now; ValueError if it can't be read."""
    try:
        return _Run.model_validate(files.read_json(path))
    except FileNotFoundError:
        return None


def _runs(root: Path, folder: Path) -> list[tuple[str, _Run]]:
    """File names and contents, the oldest first; what can't be read is named and set aside."""
    runs = []
    with files.storing(folder):
        for path in sorted(folder.glob("[0-9]*.json")):
            try:
                run = _read(path)
            except ValueError as error:
                reason = str(error).splitlines()[0]
                what = f"the list {path.name} of cells of suite {unquote(folder.name)}"
                set_aside(root, path, what, reason, f"{folder.name}{_OF}{path.name}")
                continue
            if run is not None:
                runs.append((path.name, run))
    return runs
