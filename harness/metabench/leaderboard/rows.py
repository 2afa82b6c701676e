"""The rows of a table: numbers recomputed from episodes, statuses, ranks, and their order."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import digest, digest_bytes, short
from metabench.errors import StoreError
from metabench.leaderboard.members import STATUSES, Labels, Member, Status, members
from metabench.stats.intervals import RowSummary, row_summary
from metabench.stats.ranks import DECIMALS, Rankable, ranks
from metabench.store.keys import UNREAD, CellIdentity
from metabench.store.machine import machine_id
from metabench.store.record import CellRecord
from metabench.store.store import Store

log = logging.getLogger("metabench.leaderboard")

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
        summary: score, ci95, seed_std; None unless the status is `ok`.
        seen: digest of the test episodes that were met; empty with none finished.
        adapt_ms, predict_ms: medians over its cells that were timed on one machine.
        train_s: seconds, mean over seeds, shared phases included.
        rank: among the rows that it may be compared with; see `ranked`.
    """

    suite: str
    labels: Labels
    members: tuple[Member, ...]
    status: Status
    inference: str = ""
    summary: RowSummary | None = None
    seen: str = ""
    adapt_ms: float | None = None
    predict_ms: float | None = None
    train_s: float | None = None
    rank: int | None = None

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
        return self.summary.score if self.summary else None

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
        identity, summary, labels = self.identity, self.summary, self.labels
        return {
            "suite": self.suite,
            "dataset": labels.dataset,
            "protocol": labels.protocol,
            "algorithm": labels.algorithm,
            "variant": labels.variant,
            "backbone": labels.backbone,
            "inference": self.inference or None,
            "metric": labels.metric,
            "score": self.score,
            "ci95": summary.ci95 if summary else None,
            "seed_std": summary.seed_std if summary else None,
            "seeds": len(self.records),
            "episodes": identity.protocol.get("episodes") if identity else None,
            "rank": self.rank,
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
        }

    def _mean(self, count: Callable[[CellRecord], int]) -> int | None:
        """The same in every seed, but where each seed selects its own number of steps (refit)."""
        return round(fmean(map(count, self.records))) if self.summary else None


# fmt: off
COLUMNS = [
    "suite", "dataset", "protocol", "algorithm", "variant", "backbone", "inference", "metric",
    "score", "ci95", "seed_std", "seeds", "episodes", "rank", "adapt_ms", "predict_ms", "train_s",
    "train_items", "budget", "parameters", "status", "device",
    "protocol_digest", "dataset_digest", "recipe_digest", "code_version",
]
# fmt: on


def code_version(identity: CellIdentity) -> str:
    """`c-` and 8 digits for the code of algorithm and backbone; `c-unread` if it had no source."""
    codes = [identity.algorithm.code, identity.backbone.code]
    if any(code.startswith(UNREAD) for code in codes):
        return "c-unread"
    return short("c", digest(codes))


def table_rows(store: Store, suite: str, machine: str | None = None) -> list[TableRow]:
    """The rows of a suite's table, ranked and in order.

    Args:
        machine: whose times are shown (`machine_id`); None: this machine's, with the device that a
            cell ran on.

    Raises:
        UnknownNameError: the suite was never run into this result folder.
        StoreError: something can't be read, or doesn't fit together.
    """
    by_row: dict[tuple[str, ...], list[Member]] = {}
    for member in members(store, suite):
        by_row.setdefault(_row_key(member.labels), []).append(member)
    parts = [part for cells in by_row.values() for part in _alike(cells)]
    rows = [_row(store, suite, cells, machine) for cells in parts]
    _warn_of_other_episodes(rows)
    return sorted(ranked(rows), key=_order)


def ranked(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows with their ranks, where they have one."""
    rankable = [
        Rankable(row.group, row.score, seeds=len(row.members), status=row.status) for row in rows
    ]
    return [replace(row, rank=rank) for row, rank in zip(rows, ranks(rankable), strict=True)]


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


def _row(store: Store, suite: str, cells: Sequence[Member], machine: str | None) -> TableRow:
    status = min((cell.status for cell in cells), key=STATUSES.index)
    row = TableRow(suite, cells[0].labels, tuple(cells), status)
    if not row.records:
        return row
    scores, seen = zip(*(_episodes(store, record) for record in row.records), strict=True)
    if len(set(seen)) > 1:
        raise StoreError(
            f"{row.labels.id}: the seeds of this row were tested on different episodes",
            "run the suite again with --fresh",
        )
    modes = {record.inference for record in row.records}
    row = replace(
        row, inference="transductive" if "transductive" in modes else "inductive", seen=seen[0]
    )
    if status != "ok":
        return row
    adapt_ms, predict_ms = _times(store, row.records, machine)
    return replace(
        row,
        summary=row_summary(np.stack(scores)),
        adapt_ms=adapt_ms,
        predict_ms=predict_ms,
        train_s=_train_s(store, row.records),
    )


def _episodes(store: Store, record: CellRecord) -> tuple[NDArray[np.float64], str]:
    """(E,) scores of a finished cell, and the digest of the episodes that it met."""
    results = store.episodes(record.key)
    protocol = record.identity.protocol
    if len(results.targets) != protocol.get("episodes"):
        raise StoreError(
            f"cell {record.key} has {len(results.targets)} test episodes, its protocol has"
            f" {protocol.get('episodes')}",
            "run the suite again with --fresh",
        )
    splits = record.identity.dataset.classes.encode()
    seen = digest_bytes(results.targets.tobytes(), results.classes.tobytes(), splits).hex()
    return results.scores(str(protocol.get("metric"))), seen


def _times(
    store: Store, records: Sequence[CellRecord], machine: str | None
) -> tuple[float | None, float | None]:
    """Medians of adapt_ms and predict_ms over the cells that were timed on the machine."""
    found = []
    for record in records:
        # A device's name is its type on the CPU, and needs PyTorch to be found out elsewhere.
        place = machine or machine_id(store.run_info(record.key).device)
        times = store.read_timing(record.key, place)
        if times is not None:
            found.append(times)
    return _median(found, "adapt_ms"), _median(found, "predict_ms")


def _median(tables: Sequence[dict[str, object]], name: str) -> float | None:
    values = [v for table in tables if isinstance(v := table.get(name), int | float)]
    return float(median(values)) if values else None


def _train_s(store: Store, records: Sequence[CellRecord]) -> float | None:
    """Mean over seeds of the seconds of training, with those of the shared phases under it."""
    seconds = []
    for record in records:
        parts = [store.run_info(key).train_s for key in (record.key, *record.phases)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        seconds.append(sum(known))
    return fmean(seconds)


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
