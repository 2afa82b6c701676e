"""Why a finished cell is reused by a run that starts now, or why it isn't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from metabench.leaderboard.members import labelled
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord
from metabench.store.store import Store

State = Literal["reused", "runs"]


def explain(
    store: Store, bench: Workbench, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, State, str]]:
    """Each cell as it would run now, what would become of it, and why.

    Raises:
        DataMissingError: a data set isn't prepared, so that nobody knows what its content is.
    """
    finished = {record.key: record for record in store.records()}
    noted = {name: _keys_by_id(store, name) for name in {cell.suite for cell in cells}}
    for cell in cells:
        identity = bench.identity(cell)
        why = _why_not(store, identity, finished, noted[cell.suite].get(cell.id, ""))
        yield cell, "runs" if why else "reused", why


def _why_not(
    store: Store, identity: CellIdentity, finished: dict[str, CellRecord], noted: str
) -> str:
    """Why a cell isn't reused; empty if it is.

    Args:
        noted: the key under which the latest run of its suite has it; empty if none has.
    """
    if identity.key in finished:
        return ""
    failed = store.failure(identity.key)
    if failed is not None:
        return f"it failed: {failed.failure.status}"
    if not identity.reusable:
        return "the source of its code can't be read, so nobody knows whether it changed"
    if noted in finished:
        return _difference(finished[noted], identity)
    if noted == identity.key:
        return "it isn't finished"
    nearest = _nearest(identity, finished)
    near = f"; what is nearest: {_difference(nearest, identity)}" if nearest else ""
    return f"it was never finished{near}"


def _difference(record: CellRecord, identity: CellIdentity) -> str:
    return "; ".join(record.identity.explain_difference(identity))


def _nearest(identity: CellIdentity, finished: dict[str, CellRecord]) -> CellRecord | None:
    """The finished cell that differs least, of those that could have been this one."""
    near = [
        record
        for record in finished.values()
        if _names(record.identity) == _names(identity) and record.identity.seed == identity.seed
    ]
    return min(
        near,
        key=lambda record: (len(record.identity.explain_difference(identity)), record.key),
        default=None,
    )


def _names(identity: CellIdentity) -> tuple[str, str, str]:
    return identity.dataset.name, identity.algorithm.name, identity.backbone.name


def _keys_by_id(store: Store, suite: str) -> dict[str, str]:
    if suite not in store.suites():
        return {}
    return {labels.id: cell.key for cell, labels in labelled(store.suite(suite), suite)}
