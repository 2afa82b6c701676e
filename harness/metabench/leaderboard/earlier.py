"""Rows of a result folder under earlier code: cells stay in it when code changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from metabench.episodes.digest import digest
from metabench.leaderboard.compare import Earlier
from metabench.leaderboard.members import Member
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.source import StoreSource
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord
from metabench.store.store import Store


class Version(NamedTuple):
    """A row under earlier code."""

    row: TableRow
    about: Earlier


class EarlierRows:
    """The finished cells of a folder, by the question that each is an answer to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_question: dict[str, list[CellRecord]] = {}
        for record in store.records():
            question = _question(record.identity)
            self._by_question.setdefault(question, []).append(record)

    def before(self, row: TableRow) -> Version | None:
        """A row's last version before this one; None where there was no other.

        One on the row's device goes before others, then one with more of the row's seeds: an
        attempt of which few cells finished isn't how the row was. A row that failed altogether has
        a version before it too.
        """
        identity = row.identity
        if identity is None:
            return None
        began = min(self._began(member) for member in row.members if member.identity is not None)
        versions: dict[str, list[CellRecord]] = {}
        for record in self._by_question.get(_question(identity), []):
            if record.identity.codes != identity.codes and self._started(record) < began:
                versions.setdefault(_version(record.identity), []).append(record)
        if not versions:
            return None
        seeds = {member.labels.seed for member in row.members}

        def rank(cells: Sequence[CellRecord]) -> tuple[bool, int, str]:
            alike = cells[0].identity.numerics.device == identity.numerics.device
            shared = len(seeds & {record.identity.seed for record in cells})
            return alike, shared, max(map(self._started, cells))

        chosen = max(versions.values(), key=rank)
        members = [_member(row, record) for record in chosen]
        [was] = table_rows(_Fixed(self._store, members), row.suite)
        return Version(was, Earlier(max(map(self._started, chosen)), len(versions)))

    def _began(self, cell: Member) -> str:
        """When a cell of today's row did."""
        if cell.record is not None:
            return self._started(cell.record)
        return cell.failed.run.started if cell.failed is not None else ""

    def _started(self, record: CellRecord) -> str:
        """ISO 8601 in UTC, which sorts by time; empty where it's unknown, which is early."""
        return self._store.run_info(record.key).started


class _Fixed(StoreSource):
    """A result folder of which these cells are all that a suite has."""

    def __init__(self, store: Store, cells: Sequence[Member]) -> None:
        super().__init__(store)
        self._cells = list(cells)

    def members(self, suite: str) -> list[Member]:
        return self._cells


def _member(row: TableRow, record: CellRecord) -> Member:
    seed = record.identity.seed
    return Member(record.key, row.labels.model_copy(update={"seed": seed}), record=record)


def _question(identity: CellIdentity) -> str:
    """Digest of all that a cell is but its seed, code and numerics."""
    parts: dict[str, Any] = identity.to_json()
    for name in ("schema_version", "seed", "numerics"):
        del parts[name]
    for part in parts.values():
        if isinstance(part, dict):
            part.pop("code", None)
    return digest(parts)


def _version(identity: CellIdentity) -> str:
    """Of cells that differ in the seed only."""
    return identity.model_copy(update={"seed": 0}).key
