"""Making a bundle: the rows of a suite with all that they stand on, in one file to hand in."""

from __future__ import annotations

import json
from collections.abc import Sequence

from metabench.errors import EvidenceError, UsageError
from metabench.leaderboard.members import Member
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.source import StoreSource, Trust
from metabench.publishing.archive import archive_bytes
from metabench.publishing.evidence import Proof
from metabench.publishing.private import check_nothing_private
from metabench.publishing.published import SUBMISSION, published, table_name
from metabench.publishing.submission import Submission
from metabench.registry import Registry
from metabench.runner.patterns import algorithm_matches
from metabench.store.store import Store


class ChosenSource(StoreSource):
    """Some rows of a result folder, as somebody says that they are."""

    def __init__(self, store: Store, algorithms: Sequence[str] = ()) -> None:
        """`algorithms`: patterns of a name or of name/variant; none: all rows."""
        super().__init__(store)
        self._algorithms = algorithms

    def members(self, suite: str) -> list[Member]:
        """Those of the chosen rows.

        Raises:
            UsageError: a pattern that no row has.
        """
        found = super().members(suite)
        if not self._algorithms:
            return found
        for pattern in self._algorithms:
            if not any(_is_of(member, pattern) for member in found):
                raise UsageError(
                    f"suite {suite} has no row of algorithm {pattern!r} in {self.store.root}",
                    f"it has: {', '.join(sorted({member.labels.algorithm for member in found}))}",
                )
        return [m for m in found if any(_is_of(m, pattern) for pattern in self._algorithms)]

    def trust(self, cells: Sequence[Member]) -> Trust:
        return "self-reported"


def _is_of(member: Member, pattern: str) -> bool:
    return algorithm_matches(pattern, member.labels.algorithm, member.labels.variant)


def bundle(store: Store, suite: str, registry: Registry, algorithms: Sequence[str] = ()) -> bytes:
    """The zip file of a suite's rows; the same results give the same bytes.

    Args:
        suite: its name.
        registry: says where plugins come from.
        algorithms: only these: shell-style patterns of a name, or of name/variant.

    Raises:
        EvidenceError: a row failed or is missing, a plugin is of no installed distribution, or
            something would go in that is nobody's business.
        UsageError: the suite, or an algorithm of it, was never run into this result folder.
        StoreError: something can't be read.
    """
    return archive_bytes(bundle_files(store, suite, registry, algorithms))


def bundle_files(
    store: Store, suite: str, registry: Registry, algorithms: Sequence[str] = ()
) -> dict[str, bytes]:
    """What stands in the zip, by name; see `bundle`."""
    source = ChosenSource(store, algorithms)
    rows = table_rows(source, suite)
    _check_finished(rows)
    proofs = [Proof.of(source, record) for row in rows for record in row.records]
    files = {table_name(suite): published(suite, rows, source).to_bytes()}
    for proof in proofs:
        files |= proof.files()
    files[SUBMISSION] = Submission.of(suite, proofs, files, registry).to_bytes()
    for name, data in files.items():
        if name.endswith(".json"):
            check_nothing_private(json.loads(data), name)
    return files


def _check_finished(rows: Sequence[TableRow]) -> None:
    bad = [(m.labels.id, m.status) for row in rows for m in row.members if m.status != "ok"]
    if not bad:
        return
    (cell, status), more = bad[0], len(bad) - 1
    others = f" (and {more} more)" if more else ""
    raise EvidenceError(
        f"{cell}: {status}{others}; only finished rows go in",
        "run what is missing, or choose finished rows with -a",
    )
