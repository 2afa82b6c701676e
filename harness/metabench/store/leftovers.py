"""What nothing in a result folder refers to any more, for `metabench clean`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.store import files, suites
from metabench.store.machine import owner_alive
from metabench.store.partial import is_stale
from metabench.store.shelf import CORRUPT, keys_in

if TYPE_CHECKING:
    from metabench.store.store import Store

log = logging.getLogger("metabench.store")

STALE_DRAFT_S = 24 * 3600.0
"""A folder in tmp/ of another machine counts as given up after this long, in seconds."""


@dataclass(frozen=True)
class Leftover:
    """Something that may be deleted: where, what it is, how many bytes."""

    path: Path
    what: str
    bytes: int


def unreferenced(store: Store) -> list[Leftover]:
    """Cells and failures that no suite refers to, shared phases that no such cell stands on,
    training state that nobody will go on with, drafts of lost processes, what was set aside.

    While a cell that a suite refers to is unfinished, shared phases and all stale training state
    stay: the next run goes on from them.
    """
    with files.storing(store.root):
        return [Leftover(path, what, files.tree_bytes(path)) for path, what in _paths(store)]


def _paths(store: Store) -> Iterator[tuple[Path, str]]:
    wanted = {cell.key for name in store.suites() for cell in store.suite(name)}
    finished = set(store.cells.keys())
    phases = set(store.phases.keys())
    damaged = suites.damaged(store.root)  # nobody knows what these referred to
    if damaged:
        log.warning(
            "%s is corrupted: until all of its suite is run again, no cell counts as unreferenced",
            damaged[0],
        )
        wanted |= finished
    all_done = wanted <= finished and not damaged
    for key in sorted(finished - wanted):
        yield store.folder(key), "a cell that no suite refers to"
    for key in keys_in(store.root / "failed"):
        if key in finished or (key not in wanted and not damaged):
            yield store.failure_folder(key), "a failure that no suite refers to"
    if all_done:
        yield from _unused_phases(store, wanted, phases)
    for key in keys_in(store.root / "partial"):
        if key in finished | phases or all_done:
            for folder in files.entries(store.root / "partial" / key):
                if is_stale(folder):
                    yield folder, "training state that nobody goes on with"
    for path in files.entries(store.root / "tmp"):
        if _is_lost_draft(path):
            yield path, "a draft of a process that was lost"
    for path in sorted({*files.entries(store.root / CORRUPT)} - {*damaged}):
        yield path, "set aside as corrupted"


def _unused_phases(store: Store, wanted: set[str], phases: set[str]) -> Iterator[tuple[Path, str]]:
    used: set[str] = set()
    for key in sorted(wanted):
        record = store.find(key)
        if record is None:  # corrupted: it will be run again
            return
        used.update(record.phases)
    for key in sorted(phases - used):
        yield store.phases.folder(key), "a shared phase that no cell stands on"


def _is_lost_draft(path: Path) -> bool:
    alive = owner_alive(path.name)
    if alive is None:
        return time.time() - path.lstat().st_mtime > STALE_DRAFT_S
    return not alive
