"""Ranks: who is before whom, among rows that may be compared at all."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from metabench.stats.differences import ALPHA, Runs, all_pairs
from metabench.stats.intervals import FEWEST_SEEDS


class Contender(NamedTuple):
    """What a rank depends on.

    Attributes:
        group: rows are ranked within equal groups: suite, dataset, protocol digest, metric and
            inference mode (inductive and transductive rows never share a ranking).
        runs: (E,) scores of each training seed; within a group all on the same episodes.
        status: `ok`, or what went wrong.
    """

    group: Hashable
    runs: Runs
    status: str


def ranks(rows: Sequence[Contender]) -> list[int | None]:
    """Of each row: 1 + the number of rows of its group that are significantly better.

    Significant is a p below .05, corrected by Holm for all pairs of the group that are ranked
    (`all_pairs`); rows that can't be told apart don't count for each other. So several rows may
    share rank 1, and being tied goes not on from pair to pair: a row may be tied with two that
    differ. A row of fewer than 3 seeds and one that isn't `ok` have no rank, and don't count for
    those of others; two rows with fewer than 3 seeds in common are not told apart.

    One more row widens what is corrected for, and its spread of seeds goes into the pool: it can
    make two others tied that were told apart.

    Raises:
        ValueError: rows of one group were tested on other numbers of episodes, on fewer than two,
            or have a score that is not finite.
    """
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        if row.status == "ok" and len(row.runs) >= FEWEST_SEEDS:
            places.setdefault(row.group, []).append(place)
    found: list[int | None] = [None] * len(rows)
    for group in places.values():
        better = [0] * len(group)
        for (i, j), pair in all_pairs([rows[place].runs for place in group]).items():
            if pair.basis != "these checkpoints" and pair.p_holm < ALPHA:
                better[j if pair.difference > 0 else i] += 1
        for place, count in zip(group, better, strict=True):
            found[place] = 1 + count
    return found
