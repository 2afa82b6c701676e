"""The rules by which a new row is added to a published table, replaces a row of it, or doesn't.

A row is told apart by data set, protocol, algorithm, variant and backbone. The published one gives
way to newer code, and to more seeds of the same code; never to fewer seeds, to a row that was less
checked, or to the same code with other predictions, unless somebody says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from metabench.episodes.digest import digest
from metabench.errors import EvidenceError
from metabench.leaderboard.members import Labels
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.source import TRUSTS, Source, Trust
from metabench.publishing.evidence import Proof
from metabench.publishing.history import Replaced
from metabench.publishing.published import (
    SUBMISSION,
    PublishedRow,
    PublishedSource,
    RowLabels,
    published,
)

What = Literal["added", "replaced", "extended", "kept", "unchanged", "left out"]
RowKey = tuple[str, str, str, str, str]
SAY_SO = "--replace takes the new one"


@dataclass(frozen=True)
class Change:
    """What became of a row.

    Attributes:
        what: `added`; `replaced` by the new one; `extended` by seeds; `kept` as published, though
            the new one is another; `unchanged`; `left out`, as it isn't fit to be published.
        reason: why, for people; empty where that's plain.
    """

    labels: RowLabels
    what: What
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """A row with all that it stands on.

    Attributes:
        proofs: of its cells, by seed.
        trust: how far it was checked.
        damage: why its evidence can't be read; then `proofs` is empty.
    """

    row: PublishedRow
    proofs: Mapping[int, Proof]
    trust: Trust
    damage: str = ""

    @property
    def key(self) -> RowKey:
        """What no two rows of a table have in common."""
        return row_key(self.row.labels)

    @property
    def predictions(self) -> dict[int, str]:
        """Digests of what was predicted, by seed."""
        return {seed: proof.record.result.predictions for seed, proof in self.proofs.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What its cells are, but for the seed."""
        return self._first.record.identity.model_copy(update={"seed": 0}).to_json()

    @property
    def code(self) -> str:
        """Digest of code, recipe, data and settings, wherever they were run."""
        return digest({k: v for k, v in self.identity.items() if k != "numerics"})

    @property
    def started(self) -> list[datetime]:
        """When its cells started; empty if that isn't known of all."""
        found = [moment_of(proof.cell.run.started) for proof in self.proofs.values()]
        known = [moment for moment in found if moment is not None]
        return known if len(known) == len(found) else []

    @property
    def _first(self) -> Proof:
        return next(iter(self.proofs.values()))


@dataclass(frozen=True)
class Decision:
    """What becomes of a row.

    Attributes:
        claim: the row as it stands from now on; None where it isn't published.
        history: what it replaces, if anything.
    """

    change: Change
    claim: Claim | None
    history: Replaced | None = None


def row_key(labels: RowLabels | Labels) -> RowKey:
    """What tells a row apart within its suite."""
    return (
        labels.dataset,
        labels.protocol_digest,
        labels.algorithm,
        labels.variant,
        labels.backbone,
    )


def claims(source: Source, suite: str) -> tuple[list[Claim], list[Change]]:
    """The rows of a source that are fit to be published, and what is left out.

    Raises:
        UnknownNameError: the source has no suite of that name.
        StoreError: something can't be read, or doesn't fit together.
    """
    rows = table_rows(source, suite)
    keys = [row_key(row.labels) for row in rows]
    found: list[Claim] = []
    left: list[Change] = []
    for row, key in zip(rows, keys, strict=True):
        labels = RowLabels.of(row.labels)
        if row.status != "ok":
            bad = sum(member.status != "ok" for member in row.members)
            reason = f"{row.status}: {bad} of {len(row.members)} training runs"
        elif keys.count(key) > 1:
            reason = "its seeds are of different code, data or settings: run the suite again"
        else:
            try:
                found.append(_claim(row, source))
                continue
            except EvidenceError as error:
                reason = f"{error.message}: {error.hint}" if error.hint else error.message
        left.append(Change(labels, "left out", reason))
    return found, left


def _claim(row: TableRow, source: Source) -> Claim:
    proofs = {
        record.identity.seed: source.proofs[record.key]
        if isinstance(source, PublishedSource)
        else Proof.of(source, record)
        for record in row.records
    }
    [published_row] = published(row.suite, [row], source).rows
    trust = row.trust or "self-reported"
    if isinstance(source, PublishedSource) and SUBMISSION in source.files.names():
        trust = "recomputed"  # that a bundle was run again, it can't say itself
    return Claim(published_row, proofs, trust)


def decide(old: Claim | None, new: Claim, replace: bool = False) -> Decision:
    """What becomes of a published row, if there is one, when a new one of its key comes."""
    if old is None:
        return Decision(Change(new.row.labels, "added"), new)
    if old.damage:
        return _replaced(old, new, f"it could not be read: {old.damage}")
    if old.row.cells == new.row.cells and old.predictions == new.predictions:
        return _same_again(old, new, replace)
    if old.identity == new.identity:
        return _same_code(old, new, replace)
    reason = _against(old, new)
    if reason and not replace:
        return _kept(old, reason)
    return _replaced(old, new, "asked for" if reason else "newer code, settings or data")


def _same_again(old: Claim, new: Claim, replace: bool) -> Decision:
    """Times and surroundings are new with every run; they alone are no reason."""
    if replace and any(old.proofs[seed].cell != new.proofs[seed].cell for seed in old.proofs):
        return _replaced(old, new, "the same predictions, run again: asked for")
    return Decision(Change(old.row.labels, "unchanged"), old)


def _same_code(old: Claim, new: Claim, replace: bool) -> Decision:
    common = old.proofs.keys() & new.proofs.keys()
    more = new.proofs.keys() - old.proofs.keys()
    if any(old.predictions[seed] != new.predictions[seed] for seed in common):
        reason = "the same code predicted otherwise"
    elif not more:
        reason = _more_seeds(old, new)
    elif _less_checked(new, old):
        reason = f"it is {old.trust}, the further seeds are {new.trust}"
    else:
        return _extended(old, new)
    if not replace:
        return _kept(old, reason)
    agree = all(old.predictions[seed] == new.predictions[seed] for seed in common)
    return _extended(old, new) if more and agree else _replaced(old, new, "asked for")


def _against(old: Claim, new: Claim) -> str:
    """Why a row of other code, settings, data or numerics doesn't replace one; empty if it does."""
    if _less_checked(new, old):
        return f"it is {old.trust}, the new one {new.trust}"
    if old.code == new.code:
        one, other = (dict(claim.identity["numerics"]) for claim in (old, new))
        changed = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
        shown = ", ".join(f"{k} {one.get(k)} -> {other.get(k)}" for k in changed)
        return f"the same code, computed otherwise ({shown})"
    if len(new.proofs) < len(old.proofs):
        return _more_seeds(old, new)
    if not old.started or not new.started:
        return "nobody knows which of both is newer"
    if min(new.started) <= max(old.started):
        return "the new one was not started later"
    return ""


def _more_seeds(old: Claim, new: Claim) -> str:
    return f"it has more seeds ({len(old.proofs)}, the new one {len(new.proofs)})"


def _less_checked(new: Claim, old: Claim) -> bool:
    return TRUSTS.index(new.trust) < TRUSTS.index(old.trust)


def _kept(old: Claim, reason: str) -> Decision:
    return Decision(Change(old.row.labels, "kept", f"{reason}; {SAY_SO}"), old)


def _replaced(old: Claim, new: Claim, reason: str) -> Decision:
    note = Replaced(
        row=old.row,
        predictions={str(seed): made for seed, made in old.predictions.items()},
        by=dict(new.row.cells),
        by_predictions={str(seed): made for seed, made in new.predictions.items()},
        reason=reason,
    )
    return Decision(Change(new.row.labels, "replaced", reason), new, note)


def _extended(old: Claim, new: Claim) -> Decision:
    proofs = {**new.proofs, **old.proofs}
    cells = {**new.row.cells, **old.row.cells}
    row = old.row.model_copy(update={"cells": dict(sorted(cells.items(), key=_by_seed))})
    more = sorted(new.proofs.keys() - old.proofs.keys())
    seeds = f"{'seed' if len(more) == 1 else 'seeds'} {', '.join(map(str, more))}"
    change = Change(old.row.labels, "extended", seeds)
    trust = min(old.trust, new.trust, key=TRUSTS.index)
    return Decision(change, Claim(row, dict(sorted(proofs.items())), trust))


def _by_seed(item: tuple[str, str]) -> int:
    return int(item[0])


def moment_of(text: str) -> datetime | None:
    """A moment of ISO 8601, of UTC where it says nothing else; None if it's none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def merge(
    old: Iterable[Claim], new: Sequence[Claim], replace: bool = False
) -> tuple[list[Decision], list[Claim]]:
    """What becomes of each new row, and the published rows that no new one is about."""
    standing = {claim.key: claim for claim in old}
    decisions = [decide(standing.pop(claim.key, None), claim, replace) for claim in new]
    return decisions, list(standing.values())
