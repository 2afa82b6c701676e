"""The cells of a suite as a result folder holds them: finished, failed or missing."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from metabench.episodes.digest import digest
from metabench.errors import StoreError, UnknownNameError
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord, FailedCell, FailureStatus
from metabench.store.store import Store
from metabench.store.suites import SuiteCell

log = logging.getLogger("metabench.leaderboard")

Status = FailureStatus | Literal["ok", "missing"]
STATUSES: tuple[Status, ...] = (
    "error",
    "out-of-memory",
    "nan",
    "timeout",
    "killed",
    "missing",
    "ok",
)
"""What a cell can be, the worst first."""


class Labels(BaseModel):
    """What tells a cell apart within its suite; see `metabench.runner.run.cell_labels`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str
    dataset: str
    protocol: str
    protocol_digest: str
    metric: str
    algorithm: str
    variant: str
    backbone: str
    seed: int


@dataclass(frozen=True)
class Member:
    """One cell of a suite.

    Attributes:
        key: under which it is, or would be, in the result folder.
        labels: as the latest run of the suite has them.
        command: the line that runs it again in this suite; empty where none was noted.
        record: verified; None unless it is finished.
        failed: how it failed; None unless it did.
    """

    key: str
    labels: Labels
    command: str = ""
    record: CellRecord | None = None
    failed: FailedCell | None = None

    @property
    def status(self) -> Status:
        """`ok`, how it failed, or `missing`."""
        if self.record is not None:
            return "ok"
        return self.failed.failure.status if self.failed is not None else "missing"

    @property
    def identity(self) -> CellIdentity | None:
        """What it is; unknown where it is missing."""
        if self.record is not None:
            return self.record.identity
        return self.failed.identity if self.failed is not None else None


def members(store: Store, suite: str) -> list[Member]:
    """The cells of a suite, by labels.

    Raises:
        UnknownNameError: the suite was never run into this result folder.
        StoreError: something can't be read, or a cell isn't of the protocol that its suite says.
    """
    check_suite(store, suite)
    return [_member(store, cell, labels) for cell, labels in labelled(store.suite(suite), suite)]


def labelled(cells: list[SuiteCell], suite: str) -> Iterator[tuple[SuiteCell, Labels]]:
    """The cells with their labels read; what has no such labels is named and left out."""
    for cell in cells:
        try:
            yield cell, Labels.model_validate(cell.labels)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            log.warning(
                "cell %s of suite %s is left out: its label %s is not right", cell.key, suite, where
            )


def check_suite(store: Store, suite: str) -> None:
    """Raise UnknownNameError, with the nearest name, unless the suite was run into this folder."""
    known = store.suites()
    if suite in known:
        return
    near = difflib.get_close_matches(suite, known, n=1, cutoff=0.5)
    hint = f"there are results of: {', '.join(known)}" if known else "run it first"
    raise UnknownNameError(
        f"there are no results of suite {suite!r} in {store.root}",
        f"did you mean {near[0]!r}?" if near else hint,
    )


def _member(store: Store, cell: SuiteCell, labels: Labels) -> Member:
    key, record = cell.key, store.find(cell.key)
    failed = None if record else store.failure(key)
    member = Member(key, labels, cell.command, record, failed)
    if member.identity is not None and digest(member.identity.protocol) != labels.protocol_digest:
        raise StoreError(
            f"{labels.id} is of another protocol than its suite says (cell {key[:8]})",
            f"delete {store.root / 'suites'} and run the suite again: finished cells are reused",
        )
    return member
