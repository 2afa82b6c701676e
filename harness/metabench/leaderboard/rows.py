"""The rows of a table: numbers recomputed from episodes, statuses, ranks, and their order."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from metabench.episodes.digest import digest, short
from metabench.leaderboard.members import STATUSES, Labels, Member, Status
from metabench.leaderboard.numbers import NUMBERS, RowNumbers, row_numbers
from metabench.leaderboard.source import Source, Trust
from metabench.stats.ranks import Contender, ranks
from metabench.store.keys import UNREAD, CellIdentity
from metabench.store.record import CellRecord

log = logging.getLogger("metabench.leaderboard")

DECIMALS = 4
"""Rows stand in the order of their scores as they print."""
_PROTOCOL = re.compile(r"(\d+)w(\d+)s(\d+)q")


@dataclass(frozen=True)
class TableRow:
    """A row: the cells of a suite that differ in their training seed only.

    Its numbers are over *all* the training runs that the suite refers to. While one of these failed
    or is missing they are empty: a mean over those that happened to come through could be a better
    number than the algorithm deserves.

    Attributes:
        labels: of its first cell.
        members: its cells, by seed.
        status: `ok` if all of them are finished, else the worst of theirs.
        inference: as verified; transductive if any of its cells is; empty with none finished.
        numbers: what its predictions come to; None unless the status is `ok`.
        seen: digest of the test episodes that were met; empty with none finished.
        adapt_ms, predict_ms: medians over its cells that were timed on one machine.
        train_s: seconds, mean over seeds, shared phases included.
        rank: among the rows that it may be compared with; see `ranked`.
        trust: how far its numbers were checked; None unless the status is `ok`.
    """

    suite: str
    labels: Labels
    members: tuple[Member, ...]
    status: Status
    inference: str = ""
    numbers: RowNumbers | None = None
    seen: str = ""
    adapt_ms: float | None = None
    predict_ms: float | None = None
    train_s: float | None = None
    rank: int | None = None
    trust: Trust | None = None

    @property
    def records(self) -> list[CellRecord]:
        """Of its finished cells."""
        return [m.record for m in self.members if m.record is not None]

    @property
    def identity(self) -> CellIdentity | None:
        """Of its first cell that isn't missing; all the others differ in the seed only."""
        return next((m.identity for m in self.members if m.identity is not None), None)

    @property
    def score(self) -> float | None:
        """None unless every cell of the row is finished."""
        return self.numbers.summary.score if self.numbers else None

    @property
    def dataset_digest(self) -> str:
        """All digits; empty where every cell is missing."""
        return self.identity.dataset.digest if self.identity else ""

    @property
    def group(self) -> tuple[str, ...]:
        """Rows are ranked within equal groups: the same question, asked with the same episodes."""
        return (
            self.suite,
            self.labels.dataset,
            self.labels.protocol_digest,
            self.dataset_digest if self.inference else "",
            self.labels.metric,
            self.inference,
            self.seen,
        )

    def to_dict(self) -> dict[str, object]:
        """The row as a table has it; the keys are its columns, in their order."""
        identity, labels = self.identity, self.labels
        numbers = self.numbers.columns() if self.numbers else dict.fromkeys(NUMBERS)
        return {
            "suite": self.suite,
            "dataset": labels.dataset,
            "protocol": labels.protocol,
            "algorithm": labels.algorithm,
            "variant": labels.variant,
            "backbone": labels.backbone,
            "inference": self.inference or None,
            "metric": labels.metric,
            **{name: numbers[name] for name in NUMBERS[:4]},
            "seeds": len(self.records),
            "episodes": identity.protocol.get("episodes") if identity else None,
            "rank": self.rank,
            **{name: numbers[name] for name in NUMBERS[4:]},
            "adapt_ms": self.adapt_ms,
            "predict_ms": self.predict_ms,
            "train_s": self.train_s,
            "train_items": self._mean(lambda record: record.result.train_items),
            "budget": self._mean(lambda record: record.result.budget),
            "parameters": self._mean(lambda record: record.result.parameters),
            "status": self.status,
            "device": identity.numerics.device if identity else None,
            "protocol_digest": short("p", labels.protocol_digest),
            "dataset_digest": short("d", identity.dataset.digest) if identity else None,
            "recipe_digest": short("r", digest(identity.recipe)) if identity else None,
            "code_version": code_version(identity) if identity else None,
            "trust": self.trust,
        }

    def _mean(self, count: Callable[[CellRecord], int]) -> int | None:
        """The same in every seed, but where each seed selects its own number of steps (refit)."""
        return round(fmean(map(count, self.records))) if self.numbers else None


# fmt: off
COLUMNS = [
    "suite", "dataset", "protocol", "algorithm", "variant", "backbone", "inference", "metric",
    *NUMBERS[:4], "seeds", "episodes", "rank", *NUMBERS[4:], "adapt_ms", "predict_ms", "train_s",
    "train_items", "budget", "parameters", "status", "device",
    "protocol_digest", "dataset_digest", "recipe_digest", "code_version",
    "trust",
]
# fmt: on


def code_version(identity: CellIdentity) -> str:
    """`c-` and 8 digits for the code of algorithm and backbone; `c-unread` if it had no source."""
    codes = [identity.algorithm.code, identity.backbone.code]
    if any(code.startswith(UNREAD) for code in codes):
        return "c-unread"
    return short("c", digest(codes))


def table_rows(source: Source, suite: str) -> list[TableRow]:
    """The rows of a suite's table, ranked and in order.

    Raises:
        UnknownNameError: the source has no suite of that name.
        StoreError: something can't be read, or doesn't fit together.
    """
    by_row: dict[tuple[str, ...], list[Member]] = {}
    for member in source.members(suite):
        by_row.setdefault(_row_key(member.labels), []).append(member)
    parts = [part for cells in by_row.values() for part in _alike(cells)]
    rows = [_row(source, suite, cells) for cells in parts]
    _warn_of_other_episodes(rows)
    return sorted(ranked(rows), key=_order)


def ranked(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows with their ranks, where they have one."""
    contenders = [
        Contender(row.group, row.numbers.runs if row.numbers else {}, row.status) for row in rows
    ]
    return [replace(row, rank=rank) for row, rank in zip(rows, ranks(contenders), strict=True)]


def _row_key(labels: Labels) -> tuple[str, ...]:
    return (
        labels.dataset,
        labels.protocol_digest,
        labels.algorithm,
        labels.variant,
        labels.backbone,
    )


def _alike(cells: Sequence[Member]) -> list[list[Member]]:
    """The cells of one row in parts that may be averaged: all is the same but the seed.

    Cells of one row come apart when data, code, settings or device changed between two runs that
    had different seeds. What a missing cell would have been nobody knows; where there are several
    parts, it belongs to none of them.
    """
    parts: dict[str, list[Member]] = {}
    missing = []
    for cell in sorted(cells, key=lambda member: member.labels.seed):
        if cell.identity is None:
            missing.append(cell)
        else:
            same = digest(cell.identity.model_copy(update={"seed": 0}).to_json())
            parts.setdefault(same, []).append(cell)
    found = [parts[same] for same in sorted(parts)]
    if len(found) > 1:
        _warn_of_change(found)
    if len(found) == 1:
        together = [*found[0], *missing]
        return [sorted(together, key=lambda member: member.labels.seed)]
    return [*found, missing] if missing else found


def _warn_of_change(parts: Sequence[Sequence[Member]]) -> None:
    one, other = parts[0][0], parts[1][0]
    if one.identity is None or other.identity is None:
        return
    changes = [
        line
        for line in one.identity.explain_difference(other.identity)
        if not line.startswith("seed:")
    ]
    log.warning(
        "%s and %s are no seeds of one row (%s): they stand apart; run the suite again",
        one.labels.id,
        other.labels.id,
        "; ".join(changes),
    )


def _row(source: Source, suite: str, cells: Sequence[Member]) -> TableRow:
    status = min((cell.status for cell in cells), key=STATUSES.index)
    row = TableRow(suite, cells[0].labels, tuple(cells), status)
    if not row.records:
        return row
    numbers = row_numbers(source, row.labels.id, row.records)
    modes = {record.inference for record in row.records}
    row = replace(
        row, inference="transductive" if "transductive" in modes else "inductive", seen=numbers.seen
    )
    if status != "ok":
        return row
    adapt_ms, predict_ms = _times(source, row.records)
    return replace(
        row,
        numbers=numbers,
        adapt_ms=adapt_ms,
        predict_ms=predict_ms,
        train_s=_train_s(source, row.records),
        trust=source.trust(row.members),
    )


def _times(source: Source, records: Sequence[CellRecord]) -> tuple[float | None, float | None]:
    """Medians of adapt_ms and predict_ms over the cells that were timed on the machine."""
    found = [times for record in records if (times := source.times(record)) is not None]
    return _median(found, "adapt_ms"), _median(found, "predict_ms")


def _median(tables: Sequence[Mapping[str, object]], name: str) -> float | None:
    values = [v for table in tables if isinstance(v := table.get(name), int | float)]
    return float(median(values)) if values else None


def _train_s(source: Source, records: Sequence[CellRecord]) -> float | None:
    """Mean over seeds of the seconds of training."""
    seconds = [source.train_s(record) for record in records]
    known = [part for part in seconds if part is not None]
    return fmean(known) if known and len(known) == len(seconds) else None


def _warn_of_other_episodes(rows: Sequence[TableRow]) -> None:
    """Rows under one protocol and one data set should have met the same episodes."""
    first: dict[tuple[str, str], TableRow] = {}
    for row in rows:
        if not row.seen:
            continue
        other = first.setdefault((row.labels.protocol_digest, row.dataset_digest), row)
        if other.seen != row.seen:
            log.warning(
                "%s and %s were tested on different episodes (another version of the code?"
                " another class split?) and are not ranked together; run the suite again",
                other.labels.id,
                row.labels.id,
            )


def _order(row: TableRow) -> tuple[object, ...]:
    """By data set, protocol, inference mode, score; then by name, and by all that is left."""
    score = math.inf if row.score is None else -round(row.score, DECIMALS)
    labels, identity = row.labels, row.identity
    return (
        labels.dataset,
        protocol_order(labels.protocol),
        labels.protocol_digest,
        row.inference == "",
        row.dataset_digest,
        row.inference,  # inductive before transductive
        row.seen,
        score,
        labels.algorithm,
        labels.variant,
        labels.backbone,
        digest(identity.to_json()) if identity else "",
    )


def protocol_order(name: str) -> tuple[float, float, float, str]:
    """`5w1s15q` before `5w5s15q` before `20w1s15q`; other names behind them."""
    match = _PROTOCOL.fullmatch(name)
    ways, shots, queries = map(float, match.groups()) if match else (math.inf,) * 3
    return ways, shots, queries, name
