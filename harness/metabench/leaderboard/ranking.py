"""On what the ranks of a table hang, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from metabench.leaderboard.rows import TableRow
from metabench.stats.differences import Basis, all_pairs
from metabench.stats.intervals import FEWEST_SEEDS

FEW_SEEDS = "1 or 2 seeds: these checkpoints only, nobody is ranked."
SOME_FEW_SEEDS = "Rows of 1 or 2 seeds speak of these checkpoints only, and are not ranked."
_BASIS: dict[Basis, str] = {
    "pooled seeds": "with the spread of seeds pooled over the table",
    "own seeds": "with the pair's own spread of seeds",
    "no spread of seeds": "over episodes alone, as neither hangs on its seed",
    "these checkpoints": "not told apart, with fewer than 3 seeds in common",
}


def ranking_note(rows: Sequence[TableRow]) -> str:
    """How the rows of one group are ranked, a sentence or two; empty where that's clear."""
    few = [len(row.members) < FEWEST_SEEDS for row in rows if row.numbers]
    if few and all(few):
        return FEW_SEEDS
    told = [SOME_FEW_SEEDS] if any(few) else []
    runs = [row.numbers.runs for row in rows if row.numbers and row.rank is not None]
    if len(runs) > 1:
        bases = Counter(pair.basis for pair in all_pairs(runs).values())
        parts = [f"{n} {_BASIS[basis]}" for basis, n in bases.most_common()]
        told.append(f"Ranked in pairs (Holm): {', '.join(parts)}.")
        if len({frozenset(row) for row in runs}) > 1:
            told.append(
                "Rows of other seeds are compared on those that both have, while a score is over"
                " all that its row has: ranks need not follow scores."
            )
    return " ".join(told)
