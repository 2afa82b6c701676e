"""Two rows of a table: how far apart they are, and what it would take to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from metabench.episodes.digest import short
from metabench.errors import UsageError
from metabench.leaderboard.members import STATUSES, Status
from metabench.leaderboard.names import Only, RowName, row_called
from metabench.leaderboard.rows import TableRow
from metabench.leaderboard.sections import status_text
from metabench.rendering import plain
from metabench.stats.differences import ALPHA, Difference, Runs, all_pairs
from metabench.stats.intervals import FEWEST_SEEDS
from metabench.stats.samples import Needed, needed

Same = Literal[
    "same predictions",
    "same labels, other probabilities",
    "same labels, but not of disjoint episodes",
]
"""Of a row and what it was: which predictions are equal bit by bit. The labels of the test
episodes are in all three, so that the difference is 0."""
SAME: tuple[Same, ...] = get_args(Same)
Verdict = Same | Literal["better", "worse", "not told apart", "not compared"]

CHECKPOINTS = "these checkpoints"
APART = "inductive and transductive rows are ranked apart, and no correction over a table applies"


class Earlier(NamedTuple):
    """Which earlier version of a row stands for it as it was.

    Attributes:
        started: when its last cell began, ISO 8601 in UTC; empty where that is unknown.
        versions: how many earlier ones there are.
    """

    started: str
    versions: int


@dataclass(frozen=True)
class Comparison:
    """Two rows under one protocol, or one row as it was and as it is.

    Attributes:
        first, second: the rows; where one row is compared with what it was, `second` is older.
        verdict: on the first row, at level .05 after correction.
        found: first - second; None where they aren't compared.
        scores: the two means that `found.difference` is of: over the seeds in common, where that is
            what is compared. A row's own `score` is over all of its seeds.
        statuses: of both, the worst of all parts of a row whose runs came apart.
        family: over how many pairs (or rows) `found.p_holm` is corrected; 1 where there is nothing
            to correct for, 0 where there is no p.
        apart: how many other pairs of the table aren't in that family, see `all_pairs`.
        needed: what would tell them apart; None unless they are rows of one table that aren't.
        note: why they aren't compared, or what else must be known.
        changes: what differs between the two versions of a row, from the second to the first.
        earlier: which version the second is; None but for versions in one folder.
    """

    first: TableRow
    second: TableRow
    verdict: Verdict
    found: Difference | None = None
    scores: tuple[float, float] | None = None
    statuses: tuple[Status, Status] = ("ok", "ok")
    family: int = 0
    apart: int = 0
    needed: Needed | None = None
    note: str = ""
    changes: tuple[str, ...] = ()
    earlier: Earlier | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """Inference modes, the first row's first; one where both have it, none if unknown."""
        modes = [row.inference for row in (self.first, self.second) if row.inference]
        return tuple(dict.fromkeys(modes))

    @property
    def seeds(self) -> tuple[int, int]:
        """How many training runs each has, in common or not."""
        return len(self.first.records), len(self.second.records)

    @property
    def of_checkpoints(self) -> bool:
        """Whether it says nothing of other training runs."""
        return self.found is not None and self.found.basis == CHECKPOINTS


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
    def compared(self) -> list[Comparison]:
        """What has a difference."""
        return [pair for pair in self.found if pair.found is not None]

    @property
    def regressions(self) -> list[Comparison]:
        """Where the first row is significantly worse than the second."""
        return [pair for pair in self.found if pair.verdict == "worse"]


def compare_rows(
    table: Sequence[TableRow], first: str, second: str, only: Only | None = None
) -> Comparisons:
    """Compare two rows of a suite's table, under each protocol in which both stand.

    Their p is corrected by Holm for the pairs of rows of that data set, protocol and inference
    mode, whatever `only` leaves of them: for all with 3 seeds or more in common where these two
    have, else for all others.

    Args:
        table: of `table_rows`, whole.
        first, second: what people call them, see `row_called`.
        only: among which rows they are looked for.

    Raises:
        UnknownNameError: there is no such row.
        UsageError: a name of several rows, or two of the same one; or they share no protocol, or
            `only` leaves nothing.
    """
    only = only or Only()
    only.check(table)
    rows = only.of(table)
    called = [RowName.of(row) for row in rows]
    names = row_called(called, first), row_called(called, second)
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


def why_not(first: Sequence[TableRow], second: Sequence[TableRow], called: tuple[str, str]) -> str:
    """Why two rows can't be compared; empty if they can.

    Args:
        first, second: what has their names under one protocol; several where the training runs of
            a row came apart.
        called: what a reader calls them.
    """
    both = list(zip((first, second), called, strict=True))
    if several := " and ".join(name for rows, name in both if len(rows) > 1):
        return f"the training runs of {several} are of several versions: run its suite again"
    if broken := [f"{n}: {status_text(rows[0])}" for rows, n in both if rows[0].status != "ok"]:
        return "; ".join(broken)
    one, other = first[0], second[0]
    if one.dataset_digest != other.dataset_digest:
        data = [short("d", row.dataset_digest) for row in (one, other)]
        return f"other data: {data[0]} and {data[1]}"
    if one.seen != other.seen:
        return "they were tested on other episodes (another version of the code? another split?)"
    return ""


def worst_status(rows: Iterable[TableRow]) -> Status:
    """Of all parts of a row."""
    return min((row.status for row in rows), key=STATUSES.index)


def runs_of(row: TableRow) -> Runs:
    """Of a row that is `ok`: seed -> (E,) scores."""
    return row.numbers.runs if row.numbers else {}


def in_common(first: Runs, second: Runs) -> list[int]:
    """The seeds that both have."""
    return [seed for seed in first if seed in second]


def mean_score(runs: Runs, seeds: Iterable[int]) -> float:
    """Over these seeds and all episodes."""
    return float(np.mean([runs[seed] for seed in seeds]))


def verdict_on(found: Difference) -> Verdict:
    """What a corrected p says of the first row."""
    if found.p_holm >= ALPHA:
        return "not told apart"
    return "better" if found.difference > 0 else "worse"


def family_of(found: Difference, all_found: Iterable[Difference]) -> int:
    """For how many of them a p is corrected: what checkpoints and algorithms say are apart."""
    return sum((pair.basis == CHECKPOINTS) == (found.basis == CHECKPOINTS) for pair in all_found)


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
    return ", ".join(plain(f"{label.dataset} {label.protocol}") for label in labels)


def _compared(
    table: Sequence[TableRow], first: Sequence[TableRow], second: Sequence[TableRow]
) -> Comparison:
    one, other = first[0], second[0]
    statuses = worst_status(first), worst_status(second)
    if reason := why_not(first, second, (str(RowName.of(one)), str(RowName.of(other)))):
        return Comparison(one, other, "not compared", statuses=statuses, note=reason)
    together = one.group == other.group
    # Between inference modes: by themselves.
    rows = [r for r in table if r.group == one.group and r.numbers] if together else [one, other]
    pairs = all_pairs([runs_of(row) for row in rows])
    at, beside = (next(i for i, r in enumerate(rows) if r is row) for row in (one, other))
    found = pairs[at, beside] if at < beside else _turned(pairs[beside, at])
    family, verdict = family_of(found, pairs.values()), verdict_on(found)
    return Comparison(
        one,
        other,
        verdict,
        found,
        _scores(one, other),
        statuses,
        family,
        apart=len(pairs) - family,
        needed=needed(found, alpha=ALPHA / family) if verdict == "not told apart" else None,
        note="" if together else APART,
    )


def _scores(first: TableRow, second: TableRow) -> tuple[float, float]:
    """The means that `all_pairs` compares: under 3 seeds in common, over all runs of each."""
    one, other = runs_of(first), runs_of(second)
    common = in_common(one, other)
    if len(common) < FEWEST_SEEDS:
        return mean_score(one, one), mean_score(other, other)
    return mean_score(one, common), mean_score(other, common)


def _turned(found: Difference) -> Difference:
    """The same pair the other way round."""
    return found._replace(difference=-found.difference, low=-found.high, high=-found.low)
