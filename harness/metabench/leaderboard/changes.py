"""One row as it was and as it is: in two folders, or under two versions of the code in one.

Both have the same seeds, so their training runs are paired: what a seed makes of an algorithm is in
both and cancels. Where a change leaves a row alone its predictions are equal bit by bit. Of the
others each is judged by its own runs. The spread of their differences isn't pooled as a table's
is: a change shakes some algorithms and hardly touches others, so how far the runs of one row come
apart says nothing of another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import short
from metabench.errors import UsageError
from metabench.leaderboard.compare import (
    SAME,
    Comparison,
    Comparisons,
    Earlier,
    Same,
    family_of,
    in_common,
    mean_score,
    runs_of,
    verdict_on,
    why_not,
    worst_status,
)
from metabench.leaderboard.earlier import EarlierRows
from metabench.leaderboard.names import Only, RowName
from metabench.leaderboard.rows import TableRow, code_version, table_rows
from metabench.leaderboard.source import Source, StoreSource
from metabench.stats.differences import by_holm, difference
from metabench.store.keys import CellIdentity
from metabench.store.results import EpisodeResults
from metabench.store.store import Store

Name = tuple[str, ...]


class Side(NamedTuple):
    """A suite's rows and where they are from."""

    source: Source
    rows: Sequence[TableRow]

    @classmethod
    def of(cls, source: Source, suite: str) -> Side:
        """The table of a suite; raises what `table_rows` raises."""
        return cls(source, table_rows(source, suite))


class _Match(NamedTuple):
    """Rows of one name under one protocol; several on a side where its runs came apart."""

    old: Sequence[TableRow]
    new: Sequence[TableRow]
    reason: str = ""
    earlier: Earlier | None = None


def compare_sides(old: Side, new: Side, only: Only | None = None) -> Comparisons:
    """Compare the rows that two folders have of a suite: new - old, row by row.

    Rows belong together by their labels. Holm's correction is for all rows whose labels on the test
    episodes changed. `first` is the new row.

    Raises:
        UsageError: they have no row in common, or `only` leaves none.
        StoreError, EvidenceError: something can't be read.
    """
    only = only or Only()
    only.check([*old.rows, *new.rows])
    before, now = _by_name(only.of(old.rows)), _by_name(only.of(new.rows))
    matches = [_Match(before[name], rows) for name, rows in now.items() if name in before]
    gone = {name: rows for name, rows in before.items() if name not in now}
    come = {name: rows for name, rows in now.items() if name not in before}
    for name in list(come):
        # The same row, under another protocol of the same name.
        twins = [other for other in gone if _but_protocol(other) == _but_protocol(name)]
        if len(twins) == 1 and sum(_but_protocol(n) == _but_protocol(name) for n in come) == 1:
            matches.append(_Match(gone.pop(twins[0]), come.pop(name), "another protocol"))
    if not matches:
        left = f" under {only}" if str(only) else ""
        raise UsageError(f"the two have no row in common{left}", "compare folders of one suite")
    pairs = [_Pair.of(old.source, new.source, match) for match in matches]
    return Comparisons(
        tuple(_judged(pairs)),
        tuple(row for rows in come.values() for row in rows),
        tuple(row for rows in gone.values() for row in rows),
    )


def compare_versions(store: Store, suite: str, only: Only | None = None) -> Comparisons:
    """Compare a suite's rows with themselves under earlier code, from one result folder.

    The earlier version of a row is made of the finished cells that differ from its own in code,
    perhaps in numerics, and in nothing else; of several versions, see `EarlierRows.before`.
    Rows without one are in `only_first`, but for the part of a row that wasn't run again.

    Raises:
        UnknownNameError, StoreError: as `table_rows`.
        UsageError: `only` leaves no row.
    """
    only = only or Only()
    new = Side.of(StoreSource(store), suite)
    only.check(new.rows)
    earlier = EarlierRows(store)
    pairs: list[_Pair] = []
    alone: list[TableRow] = []
    for parts in _by_name(only.of(new.rows)).values():
        found = [(row, earlier.before(row)) for row in parts]
        lone = [row for row, was in found if was is None]
        note = _not_again(lone) if len(lone) < len(parts) else ""
        for row, was in found:
            if was is not None:
                match = _Match([was.row], [row], earlier=was.about)
                pairs.append(_Pair.of(new.source, new.source, match).noted(note))
        alone += [] if note else lone
    return Comparisons(tuple(_judged(pairs)), tuple(alone))


def _not_again(rows: Sequence[TableRow]) -> str:
    """What stands beside the part of a row that has other code than these."""
    seeds = sum(len(row.members) for row in rows)
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'} not run again" if seeds else ""


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
        same: which of the predictions are equal; None if labels of the test episodes aren't.
    """

    draft: Comparison
    gap: NDArray[np.float64] | None = None
    same: Same | None = None

    @classmethod
    def of(cls, old_source: Source, new_source: Source, match: _Match) -> _Pair:
        was, now = match.old[0], match.new[0]
        draft = Comparison(
            now,
            was,
            "not compared",
            statuses=(worst_status(match.new), worst_status(match.old)),
            changes=tuple(_told_changes(was, now)),
            earlier=match.earlier,
        )
        if match.reason:
            digests = [short("p", row.labels.protocol_digest) for row in (was, now)]
            reason = f"{match.reason}: {digests[0]} -> {digests[1]}"
            return cls(replace(draft, note=reason))
        if reason := why_not(match.old, match.new, ("old", "new")):
            return cls(replace(draft, note=reason))
        before, after = runs_of(was), runs_of(now)
        seeds = in_common(after, before)
        if not seeds:
            return cls(replace(draft, note="they have no training seed in common"))
        gap = np.stack([np.subtract(after[seed], before[seed]) for seed in seeds])
        draft = replace(draft, scores=(mean_score(after, seeds), mean_score(before, seeds)))
        return cls(draft, gap, _what_is_same(old_source, was, new_source, now, seeds))

    def noted(self, note: str) -> _Pair:
        """With something more to know."""
        notes = "; ".join(filter(None, [self.draft.note, note]))
        return self._replace(draft=replace(self.draft, note=notes))


def _told_changes(was: TableRow, now: TableRow) -> list[str]:
    told = changes(was.identity, now.identity) if was.identity and now.identity else []
    if was.inference and now.inference and was.inference != now.inference:
        told.append(f"inference: {was.inference} -> {now.inference}")
    return told


def _what_is_same(
    old_source: Source, was: TableRow, new_source: Source, now: TableRow, seeds: Iterable[int]
) -> Same | None:
    """The least that is said of any seed."""
    before, after = ({r.identity.seed: r.key for r in row.records} for row in (was, now))
    found: list[Same] = []
    for seed in seeds:
        old, new = before[seed], after[seed]
        test = _equal(old_source.episodes(old), new_source.episodes(new))
        if test is None:
            return None
        disjoint = _equal(old_source.disjoint(old), new_source.disjoint(new))
        found.append(max(test, disjoint or SAME[2], key=SAME.index))
    return max(found, key=SAME.index)


def _equal(old: EpisodeResults | None, new: EpisodeResults | None) -> Same | None:
    """What is said of one cell's episodes of a kind; None if labels differ, or one has none."""
    if old is None or new is None:
        return SAME[0] if old is new else None
    if old.digest == new.digest:
        return SAME[0]
    asked = old.queries_digest == new.queries_digest
    return SAME[1] if asked and np.array_equal(old.predictions, new.predictions) else None


def _judged(pairs: Sequence[_Pair]) -> list[Comparison]:
    found = {
        place: difference(pair.gap, np.zeros_like(pair.gap))
        for place, pair in enumerate(pairs)
        if pair.gap is not None
    }
    changed = by_holm({place: f for place, f in found.items() if pairs[place].same is None})
    comparisons = []
    for place, pair in enumerate(pairs):
        draft = pair.draft
        if place in changed:
            result, family = changed[place], family_of(changed[place], changed.values())
            draft = replace(draft, verdict=verdict_on(result), found=result, family=family)
        elif pair.same:
            draft = replace(draft, verdict=pair.same, found=found[place])
        comparisons.append(draft)
    return comparisons


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
