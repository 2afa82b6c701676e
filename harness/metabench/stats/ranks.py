"""Ranks: who is before whom, among rows that may be compared at all."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from metabench.stats.intervals import FEWEST_SEEDS

DECIMALS = 4
"""Scores that print alike are tied."""


class Rankable(NamedTuple):
    """What a rank depends on.

    Attributes:
        group: rows are ranked within equal groups: suite, dataset, protocol digest, metric and
            inference mode (inductive and transductive rows never share a ranking).
        score: higher is better; None where there is none.
        seeds: training runs behind it.
        status: `ok`, or what went wrong.
    """

    group: Hashable
    score: float | None
    seeds: int
    status: str


def ranks(rows: Sequence[Rankable]) -> list[int | None]:
    """The rank of each row, 1 for the best; ties share the better rank, and the next is skipped.

    A row of fewer than 3 seeds, one that isn't `ok` and one without a score have no rank, and
    don't count for those of others.
    """
    scores = [_comparable(row) for row in rows]
    return [
        None
        if score is None
        else 1
        + sum(
            other is not None and rival.group == row.group and other > score
            for rival, other in zip(rows, scores, strict=True)
        )
        for row, score in zip(rows, scores, strict=True)
    ]


def _comparable(row: Rankable) -> float | None:
    """The score as it prints, or None where the row is not ranked."""
    if row.status != "ok" or row.score is None or row.seeds < FEWEST_SEEDS:
        return None
    return round(row.score, DECIMALS)
