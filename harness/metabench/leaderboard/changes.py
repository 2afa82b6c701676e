"""One row as it was and as it is: in two folders, or under two versions of the code in one.

Both have the same seeds, so their training runs are paired: what a seed makes of an algorithm is in
both and cancels. Where a change leaves a row alone its predictions are equal bit by bit. Of the
others each is judged by its own runs. The spread of their differences isn't pooled as a table's
is: a change shakes some algorithms and hardly touches others, and with spreads ten times apart
pooling told a false difference in 6 to 10 of 100 simulated changes of 12 rows and 3 seeds that
changed no mean; a row's own spread in at most 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import digest, short
from metabench.errors import UsageError
from metabench.leaderboard.compare import (
    CHECKPOINTS,
    Comparison,
    Comparisons,
    Only,
    RowName,
    runs_of,
    verdict_on,
    why_not,
)
from metabench.leaderboard.members import Member
from metabench.leaderboard.rows import TableRow, code_version, table_rows
from metabench.leaderboard.source import Source, StoreSource
from metabench.stats.differences import Difference, difference
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord
from metabench.store.store import Store

Name = tuple[str, ...]


class Side(NamedTuple):
    """A suite's rows and where they are from."""

    source: Source
    rows: Sequence[TableRow]

    @classmethod
    def of(cls, source: Source, suite: str, only: Only | None = None) -> Side:
        """The table of a suite, or what is meant of it; raises what `table_rows` raises."""
        return cls(source, (only or Only()).of(table_rows(source, suite)))


class _Match(NamedTuple):
    """Rows of one name under one protocol; several on a side where its runs came apart."""

    old: Sequence[TableRow]
    new: Sequence[TableRow]
    reason: str = ""


def compare_sides(old: Side, new: Side) -> Comparisons:
    """Compare the rows that two folders have of a suite: new - old, row by row.

    Rows belong together by their labels. Holm's correction is for all rows whose predictions
    changed. `first` is the new row.

    Raises:
        UsageError: they have no row in common.
        StoreError, EvidenceError: something can't be read.
    """
    before, now = _by_name(old.rows), _by_name(new.rows)
    matches = [_Match(before[name], rows) for name, rows in now.items() if name in before]
    gone = {name: rows for name, rows in before.items() if name not in now}
    come = {name: rows for name, rows in now.items() if name not in before}
    for name in list(come):
        # The same row, under another protocol of the same name.
        twins = [other for other in gone if _but_protocol(other) == _but_protocol(name)]
        if len(twins) == 1 and sum(_but_protocol(n) == _but_protocol(name) for n in come) == 1:
            matches.append(_Match(gone.pop(twins[0]), come.pop(name), "another protocol"))
    if not matches:
        raise UsageError("the two have no row in common", "compare folders of one suite")
    pairs = [_Pair.of(old.source, new.source, match) for match in matches]
    return Comparisons(
        tuple(_judged(pairs)),
        tuple(row for rows in come.values() for row in rows),
        tuple(row for rows in gone.values() for row in rows),
    )


def compare_versions(store: Store, suite: str, only: Only | None = None) -> Comparisons:
    """Compare a suite's rows with themselves under earlier code, from one result folder.

    The earlier version of a row is made of the finished cells that differ from its own in code,
    perhaps in numerics, and in nothing else; of several versions, the last that ran before it.
    Rows without one are in `only_first`.

    Raises:
        UnknownNameError, StoreError: as `table_rows`.
    """
    new = Side.of(StoreSource(store), suite, only)
    earlier = _Earlier(store)
    pairs, alone = [], []
    for row in new.rows:
        cells = earlier.cells(row)
        if cells:
            [was] = table_rows(_Fixed(store, cells), suite)
            pairs.append(_Pair.of(new.source, new.source, _Match([was], [row])))
        else:
            alone.append(row)
    return Comparisons(tuple(_judged(pairs)), tuple(alone))


def changes(old: CellIdentity, new: CellIdentity) -> list[str]:
    """What changed of a row, short; the seed is none of it."""
    lines = old.explain_difference(new.model_copy(update={"seed": old.seed}))
    codes = [line.partition(".code: ")[0] for line in lines if ".code: " in line]
    rest = [line for line in lines if ".code: " not in line]
    if not codes:
        return rest
    versions = code_version(old), code_version(new)
    told = f"{versions[0]} -> {versions[1]}" if versions[0] != versions[1] else versions[0]
    return [f"code of {', '.join(codes)} ({told})", *rest]


class _Pair(NamedTuple):
    """A row as it was and as it is, and (S, E) scores of the seeds that both have.

    Attributes:
        draft: the comparison so far.
        gap: new - old; None where they aren't compared.
        same: whether all predictions are equal.
    """

    draft: Comparison
    gap: NDArray[np.float64] | None = None
    same: bool = False

    @classmethod
    def of(cls, old_source: Source, new_source: Source, match: _Match) -> _Pair:
        was, now = match.old[0], match.new[0]
        told = changes(was.identity, now.identity) if was.identity and now.identity else []
        if was.inference and now.inference and was.inference != now.inference:
            told.append(f"inference: {was.inference} -> {now.inference}")
        draft = Comparison(now, was, "not compared", changes=tuple(told))
        if match.reason:
            digests = [short("p", row.labels.protocol_digest) for row in (was, now)]
            reason = f"{match.reason}: {digests[0]} -> {digests[1]}"
            return cls(replace(draft, note=reason))
        if reason := why_not(match.new, match.old):
            return cls(replace(draft, note=reason))
        before, after = runs_of(was), runs_of(now)
        seeds = [seed for seed in after if seed in before]
        if not seeds:
            return cls(replace(draft, note="they have no training seed in common"))
        gap = np.stack([np.subtract(after[seed], before[seed]) for seed in seeds])
        return cls(draft, gap, _same_predictions(old_source, was, new_source, now, seeds))


def _same_predictions(
    old_source: Source, was: TableRow, new_source: Source, now: TableRow, seeds: Iterable[int]
) -> bool:
    before, after = ({r.identity.seed: r.key for r in row.records} for row in (was, now))
    return all(
        np.array_equal(
            old_source.episodes(before[seed]).predictions,
            new_source.episodes(after[seed]).predictions,
        )
        for seed in seeds
    )


def _judged(pairs: Sequence[_Pair]) -> list[Comparison]:
    found = {
        place: difference(pair.gap, np.zeros_like(pair.gap))
        for place, pair in enumerate(pairs)
        if pair.gap is not None
    }
    changed = _corrected({place: f for place, f in found.items() if not pairs[place].same})
    comparisons = []
    for place, pair in enumerate(pairs):
        draft = pair.draft
        if place in changed:
            result, family = changed[place]
            draft = replace(draft, verdict=verdict_on(result), found=result, family=family)
        elif pair.same:
            draft = replace(draft, verdict="same predictions", found=found[place])
        comparisons.append(draft)
    return comparisons


def _corrected(found: dict[int, Difference]) -> dict[int, tuple[Difference, int]]:
    """With p corrected by Holm, and for how many; these checkpoints and algorithms apart."""
    from statsmodels.stats.multitest import multipletests

    results = {}
    for checkpoints in (False, True):
        family = [i for i, pair in found.items() if (pair.basis == CHECKPOINTS) is checkpoints]
        if family:
            adjusted = multipletests([found[i].p for i in family], method="holm")[1]
            for place, p in zip(family, adjusted, strict=True):
                results[place] = found[place]._replace(p_holm=float(p)), len(family)
    return results


def _by_name(rows: Iterable[TableRow]) -> dict[Name, list[TableRow]]:
    """The rows of a table by what tells them apart in it, in its order."""
    found: dict[Name, list[TableRow]] = {}
    for row in rows:
        labels = row.labels
        name = (labels.dataset, labels.protocol, labels.protocol_digest, *RowName.of(row))
        found.setdefault(name, []).append(row)
    return found


def _but_protocol(name: Name) -> Name:
    """A row's name without the digest of its protocol."""
    return (*name[:2], *name[3:])


class _Fixed(StoreSource):
    """A result folder of which these cells are all that a suite has."""

    def __init__(self, store: Store, cells: Sequence[Member]) -> None:
        super().__init__(store)
        self._cells = list(cells)

    def members(self, suite: str) -> list[Member]:
        return self._cells


class _Earlier:
    """The finished cells of a folder, by the question that each is an answer to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_question: dict[str, list[CellRecord]] = {}
        for record in store.records():
            question = _question(record.identity)
            self._by_question.setdefault(question, []).append(record)

    def cells(self, row: TableRow) -> list[Member]:
        """The cells of its last version before this one; none where there was no other."""
        if not row.records:
            return []
        identity = row.records[0].identity
        began = min(self._started(record) for record in row.records)
        versions: dict[str, list[CellRecord]] = {}
        for record in self._by_question.get(_question(identity), []):
            if record.identity.codes != identity.codes and self._started(record) < began:
                versions.setdefault(_version(record.identity), []).append(record)
        if not versions:
            return []

        def last(cells: Sequence[CellRecord]) -> tuple[bool, str]:
            alike = cells[0].identity.numerics.device == identity.numerics.device
            return alike, max(map(self._started, cells))

        chosen = max(versions.values(), key=last)
        return [_member(row, record) for record in chosen]

    def _started(self, record: CellRecord) -> str:
        """ISO 8601 in UTC, which sorts by time; empty where it's unknown, which is early."""
        return self._store.run_info(record.key).started


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
