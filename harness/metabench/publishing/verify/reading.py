"""Reading all that is there: tables, evidence, and what doesn't belong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from metabench.errors import EvidenceError
from metabench.publishing.evidence import CELLS, QUERIES, REPRODUCED, Proof
from metabench.publishing.files import Files
from metabench.publishing.published import (
    SUBMISSION,
    PublishedRow,
    PublishedTable,
    stem_of,
    suites_in,
    table_name,
)
from metabench.publishing.submission import Submission
from metabench.publishing.verify.report import CannotCheckError, Report, require

MOST_QUERIES = 60_000_000
"""Of all cells together: eight bytes each are held, and some more."""
BESIDE = (".csv", ".md", ".history.json", ".datasheet.md", ".croissant.json")
"""What may stand beside a table `<suite>.json`."""
LEFT_ALONE = re.compile(r"README\.md|measurements/.*")
"""What no table refers to, and is no table."""


@dataclass(frozen=True)
class RowOf:
    """A row of a table, and the evidence of its cells that could be read, by seed."""

    suite: str
    row: PublishedRow
    proofs: list[Proof]

    @property
    def what(self) -> str:
        """What people call it."""
        labels = self.row.labels
        named = f"{labels.algorithm}:{labels.variant}" if labels.variant else labels.algorithm
        path = f"{labels.dataset}/{labels.protocol}/{named}/{labels.backbone}"
        return f"{self.suite}: {path}"

    @property
    def whole(self) -> bool:
        """Whether the evidence of all its cells could be read."""
        return len(self.proofs) == len(self.row.cells)


@dataclass
class Read:
    """What could be read of a bundle or a folder.

    Attributes:
        tables: by suite.
        proofs: by key, each as its record says.
        queries: how many predictions there are in them.
        submission: of a bundle, where it could be read.
    """

    files: Files
    tables: dict[str, PublishedTable] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    queries: int = 0
    submission: Submission | None = None

    @property
    def is_bundle(self) -> bool:
        return SUBMISSION in self.files.names()

    def rows(self) -> Iterator[RowOf]:
        """All rows, table by table."""
        for suite, table in self.tables.items():
            for row in table.rows:
                keys = [key for _, key in sorted(row.cells.items(), key=lambda item: int(item[0]))]
                yield RowOf(suite, row, [self.proofs[k] for k in keys if k in self.proofs])


def read_all(files: Files, report: Report) -> Read:
    """Tables and evidence, with a finding on each."""
    read = Read(files)
    if read.is_bundle:
        report.check("submission", SUBMISSION, partial(_submission, read))
    report.check("tables", files.place, lambda: require(bool(suites_in(files)), "it has no table"))
    for suite in suites_in(files):
        report.check("tables", table_name(suite), partial(_table, read, suite))
    for key in sorted({key for table in read.tables.values() for key in table.keys}):
        report.check("evidence", f"{CELLS}/{key}", partial(_proof, read, key))
    if read.submission is not None:
        told = partial(_told_right, read, read.submission)
        report.check("submission", f"plugins of {SUBMISSION}", told)
    return read


def _submission(read: Read) -> None:
    read.submission = Submission.read(read.files)


def _told_right(read: Read, told: Submission) -> None:
    """What it says of plugins and machines is what the records say."""
    require(list(read.tables) == [told.suite], f"it is of suite {told.suite}, not its table")
    if not all(row.whole for row in read.rows()):
        raise CannotCheckError("not all of its evidence could be read")
    told.check_follows(list(read.proofs.values()))


def _table(read: Read, suite: str) -> None:
    read.tables[suite] = PublishedTable.read(read.files, suite)


def _proof(read: Read, key: str) -> None:
    found = Proof.read(read.files, key)
    read.queries += found.episodes.targets.size
    read.queries += found.disjoint.targets.size if found.disjoint else 0
    require(read.queries <= MOST_QUERIES, f"there are more than {MOST_QUERIES} predictions in all")
    read.proofs[key] = found


def check_nothing_stray(read: Read, report: Report) -> None:
    """Every file is a table's, or is what a table refers to."""
    report.check("no other files", read.files.place, lambda: _nothing_stray(read))
    for row in read.rows():
        report.check("no cell twice", row.what, partial(_no_cell_twice, read, row))


def _nothing_stray(read: Read) -> None:
    known = {SUBMISSION} if read.is_bundle else set()
    for suite in suites_in(read.files):
        known |= {table_name(suite)}
        if not read.is_bundle:
            known |= {stem_of(suite) + ending for ending in BESIDE}
    for table in read.tables.values():
        for key in table.keys:
            known |= {f"{CELLS}/{key}.json", f"{CELLS}/{key}.parquet", f"{REPRODUCED}/{key}.json"}
    for proof in read.proofs.values():
        asked = filter(None, (proof.cell.queries, proof.cell.disjoint_queries))
        known |= {f"{QUERIES}/{digest}.parquet" for digest in asked}
    odd = [name for name in read.files.names() if name not in known]
    odd = [name for name in odd if read.is_bundle or not LEFT_ALONE.fullmatch(name)]
    if not odd:
        return
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    text = odd[0].endswith((".csv", ".md")) and "/" not in odd[0]
    why = "is a table without its JSON" if text else "is of no table here"
    raise EvidenceError(f"{odd[0]} {why}{more}")


def _no_cell_twice(read: Read, mine: RowOf) -> None:
    """A table counts a cell once, under one name."""
    keys = list(mine.row.cells.values())
    require(len(set(keys)) == len(keys), "one of its cells stands for two of its seeds")
    for other in read.tables[mine.suite].rows:
        if other is not mine.row and (both := set(keys).intersection(other.cells.values())):
            theirs = other.labels
            raise EvidenceError(
                f"its cell {min(both)[:8]} is one of {theirs.algorithm} {theirs.variant},"
                f" {theirs.backbone} too"
            )
