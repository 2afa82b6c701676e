"""Two rows of a table: how far apart they are, and what it would take to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from metabench.episodes.digest import short
from metabench.errors import UsageError, unknown_name
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.sections import status_text
from metabench.leaderboard.source import Source
from metabench.runner.patterns import algorithm_matches, any_match, protocol_matches
from metabench.stats.differences import ALPHA, Difference, Runs, all_pairs
from metabench.stats.samples import Needed, needed

Verdict = Literal["better", "worse", "not told apart", "same predictions", "not compared"]

CHECKPOINTS = "these checkpoints"
APART = "inductive and transductive rows are ranked apart, and no correction over a table applies"


class RowName(NamedTuple):
    """What people call a row: `maml`, `maml/batch-norm-batch`, `maml@conv4-32`."""

    algorithm: str
    variant: str
    backbone: str

    @classmethod
    def of(cls, row: TableRow) -> RowName:
        return cls(row.labels.algorithm, row.labels.variant, row.labels.backbone)

    @property
    def short(self) -> str:
        """Without the backbone."""
        return f"{self.algorithm}/{self.variant}" if self.variant else self.algorithm

    def __str__(self) -> str:
        return f"{self.short}@{self.backbone}"


@dataclass(frozen=True)
class Only:
    """Which rows are meant; nothing of a kind means all of them. Patterns are as for a run."""

    algorithms: Sequence[str] = ()
    backbones: Sequence[str] = ()
    datasets: Sequence[str] = ()
    protocols: Sequence[str] = ()

    def __contains__(self, row: TableRow) -> bool:
        labels, identity = row.labels, row.identity
        datasets, backbones = [labels.dataset], [labels.backbone]
        if identity is not None:
            datasets.append(identity.dataset.name)
            backbones.append(identity.backbone.name)
        return (
            (not self.algorithms or any(_is_called(row, name) for name in self.algorithms))
            and (not self.backbones or any_match(self.backbones, backbones))
            and (not self.datasets or any_match(self.datasets, datasets))
            and (
                not self.protocols
                or any(protocol_matches(name, labels.protocol) for name in self.protocols)
            )
        )

    def of(self, rows: Iterable[TableRow]) -> list[TableRow]:
        """Those of the rows that are meant."""
        return [row for row in rows if row in self]


def _is_called(row: TableRow, pattern: str) -> bool:
    name = RowName.of(row)
    return pattern in (name.short, str(name)) or algorithm_matches(
        pattern, name.algorithm, name.variant
    )


@dataclass(frozen=True)
class Comparison:
    """Two rows under one protocol, or one row as it was and as it is.

    Attributes:
        first, second: the rows; where one row is compared with what it was, `second` is older.
        verdict: on the first row, at level .05 after correction.
        found: first - second; None where they aren't compared.
        family: over how many pairs (or rows) `found.p_holm` is corrected; 1 where there is nothing
            to correct for.
        needed: what would tell them apart; None unless they are rows of one table that aren't.
        note: why they aren't compared, or what else must be known.
        changes: what differs between the two versions of a row, from the second to the first.
    """

    first: TableRow
    second: TableRow
    verdict: Verdict
    found: Difference | None = None
    family: int = 0
    needed: Needed | None = None
    note: str = ""
    changes: tuple[str, ...] = ()

    @property
    def inference(self) -> str:
        """The mode of both rows, or both modes; empty where nothing is known of a row."""
        modes = [row.inference for row in (self.first, self.second) if row.inference]
        return " / ".join(dict.fromkeys(modes))


@dataclass(frozen=True)
class Comparisons:
    """What came of comparing.

    Attributes:
        found: in the order of the table.
        only_first, only_second: rows that the other side has nothing for.
    """

    found: tuple[Comparison, ...]
    only_first: tuple[TableRow, ...] = ()
    only_second: tuple[TableRow, ...] = ()

    @property
    def regressions(self) -> list[Comparison]:
        """Where the first row is significantly worse than the second."""
        return [pair for pair in self.found if pair.verdict == "worse"]


def compare_rows(
    source: Source, suite: str, first: str, second: str, only: Only | None = None
) -> Comparisons:
    """Compare two rows of a suite's table, under each protocol in which both stand.

    Their p is corrected by Holm for all pairs of rows of that data set, protocol and inference
    mode, whatever `only` leaves of them.

    Args:
        first, second: what people call them, see `row_called`.
        only: among which rows they are looked for.

    Raises:
        UnknownNameError: there is no such suite or row.
        UsageError: a name of several rows, or two of the same one; or they share no protocol.
        StoreError: something can't be read, or doesn't fit together.
    """
    table = table_rows(source, suite)
    rows = (only or Only()).of(table)
    names = row_called(rows, first), row_called(rows, second)
    if names[0] == names[1]:
        raise UsageError(f"{first!r} and {second!r} are the same row, {names[0]}", "name two")
    places = [_places(rows, name) for name in names]
    shared = [place for place in places[0] if place in places[1]]
    if not shared:
        stands = [f"{name} under {_listed(p)}" for name, p in zip(names, places, strict=True)]
        raise UsageError(
            "they have no data set and protocol in common: " + ", ".join(stands),
            "rows are compared on the same episodes only",
        )
    found = [_compared(table, places[0][at], places[1][at]) for at in shared]
    left = [[r for at, rs in p.items() if at not in shared for r in rs] for p in places]
    return Comparisons(tuple(found), tuple(left[0]), tuple(left[1]))


def row_called(rows: Sequence[TableRow], text: str) -> RowName:
    """The row that is meant by `ALGORITHM[/VARIANT][@BACKBONE]`.

    A name without a variant means the row that has none, if there is such a one.

    Raises:
        UnknownNameError: no row is called so.
        UsageError: several are.
    """
    names = sorted({RowName.of(row) for row in rows})
    called, _, backbone = text.partition("@")
    exact = [name for name in names if text in (name.short, str(name))]
    found = exact or [
        name
        for name in names
        if algorithm_matches(called, name.algorithm, name.variant)
        and (not backbone or any_match([backbone], [name.backbone]))
    ]
    plain = [name for name in found if not name.variant]
    if "/" not in called and plain:
        found = plain
    if not found:
        raise unknown_name("row", text, {str(name) if backbone else name.short for name in names})
    if len(found) > 1:
        raise UsageError(
            f"{text!r} is the name of {len(found)} rows",
            f"say which: {', '.join(map(str, found))}",
        )
    return found[0]


def why_not(first: Sequence[TableRow], second: Sequence[TableRow]) -> str:
    """Why two rows can't be compared; empty if they can.

    Args:
        first, second: what has their names under one protocol; several where the training runs of
            a row came apart.
    """
    for rows in (first, second):
        if len(rows) > 1:
            return (
                f"the training runs of {RowName.of(rows[0])} are of several versions: run its suite"
                " again"
            )
        if rows[0].status != "ok":
            return f"{RowName.of(rows[0])}: {status_text(rows[0])}"
    one, other = first[0], second[0]
    if one.dataset_digest != other.dataset_digest:
        data = [short("d", row.dataset_digest) for row in (other, one)]
        return f"other data: {data[0]} and {data[1]}"
    if one.seen != other.seen:
        return "they were tested on other episodes (another version of the code? another split?)"
    return ""


def runs_of(row: TableRow) -> Runs:
    """Of a row that is `ok`: seed -> (E,) scores."""
    return row.numbers.runs if row.numbers else {}


def verdict_on(found: Difference) -> Verdict:
    """What a corrected p says of the first row."""
    if found.p_holm >= ALPHA:
        return "not told apart"
    return "better" if found.difference > 0 else "worse"


def _places(rows: Sequence[TableRow], name: RowName) -> dict[tuple[str, str], list[TableRow]]:
    """The rows of a name by data set and protocol digest, in the order of the table."""
    found: dict[tuple[str, str], list[TableRow]] = {}
    for row in rows:
        if RowName.of(row) == name:
            place = row.labels.dataset, row.labels.protocol_digest
            found.setdefault(place, []).append(row)
    return found


def _listed(places: Mapping[tuple[str, str], Sequence[TableRow]]) -> str:
    labels = [rows[0].labels for rows in places.values()]
    return ", ".join(f"{label.dataset} {label.protocol}" for label in labels)


def _compared(
    table: Sequence[TableRow], first: Sequence[TableRow], second: Sequence[TableRow]
) -> Comparison:
    one, other = first[0], second[0]
    if reason := why_not(first, second):
        return Comparison(one, other, "not compared", note=reason)
    together = one.group == other.group
    # Between inference modes: by themselves.
    rows = [r for r in table if r.group == one.group and r.numbers] if together else [one, other]
    pairs = all_pairs([runs_of(row) for row in rows])
    at, beside = (next(i for i, r in enumerate(rows) if r is row) for row in (one, other))
    found = pairs[at, beside] if at < beside else _turned(pairs[beside, at])
    family = sum(_is_of(pair) == _is_of(found) for pair in pairs.values())
    verdict = verdict_on(found)
    return Comparison(
        one,
        other,
        verdict,
        found,
        family,
        needed(found, alpha=ALPHA / family) if verdict == "not told apart" else None,
        note="" if together else APART,
    )


def _is_of(pair: Difference) -> bool:
    """Which of Holm's two families a pair is in, see `all_pairs`."""
    return pair.basis == CHECKPOINTS


def _turned(found: Difference) -> Difference:
    """The same pair the other way round."""
    return found._replace(difference=-found.difference, low=-found.high, high=-found.low)
