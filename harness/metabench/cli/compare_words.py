"""Words and numbers that the pages of `metabench compare` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metabench.leaderboard.compare import Comparison, Comparisons
from metabench.leaderboard.names import RowName
from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row
from metabench.stats.differences import Difference


class Kind(NamedTuple):
    """What is compared.

    Attributes:
        name: `rows`, `folders` or `versions`.
        first, second: what the two sides are called.
        places: what stands behind these names.
    """

    name: str
    first: str
    second: str
    places: tuple[str, str]


ROWS = Kind("rows", "a", "b", ("", ""))


def tally(kind: Kind, found: Comparisons) -> str:
    """How many could be compared: `1 of 7 rows compared; 6 not, 1 gone`."""
    compared, all_found = len(found.compared), len(found.found)
    what = "table" if kind.name == "rows" else "row"
    left = [f"{all_found - compared} not"] if compared < all_found else []
    if kind.name != "rows" and found.only_second:
        left.append(f"{len(found.only_second)} gone")
    told = f"{compared} of {all_found} {what}{'' if all_found == 1 else 's'} compared"
    return f"{told}; {', '.join(left)}" if left else told


def place_of(kind: Kind, pair: Comparison) -> str:
    """Data set, protocol and inference mode, or both modes."""
    labels = pair.first.labels
    return ", ".join(filter(None, [labels.dataset, labels.protocol, inference_of(kind, pair)]))


def inference_of(kind: Kind, pair: Comparison) -> str:
    """The mode; `a / b` of two rows that differ, `old -> new` of one that changed."""
    return " / ".join(pair.modes) if kind.name == "rows" else " -> ".join(reversed(pair.modes))


def name_of(row: TableRow) -> str:
    """With the backbone."""
    return str(RowName.of(row))


def verdict_of(pair: Comparison) -> str:
    """With a word where it is about these checkpoints only."""
    return f"{pair.verdict} (checkpoints)" if pair.of_checkpoints and pair.family else pair.verdict


def seeds_of(pair: Comparison, found: Difference) -> str:
    """`3`, or `3 of 5 and 3` where the two don't have the same ones."""
    if pair.seeds == (found.seeds, found.seeds):
        return str(found.seeds)
    return f"{found.seeds} of {pair.seeds[0]} and {pair.seeds[1]}"


def interval(found: Difference) -> str:
    """The ends of the interval."""
    return f"[{found.low:.4f}, {found.high:.4f}]"


def p_text(p: float) -> str:
    """4 decimals; what would be 0.0000 is `<0.0001`."""
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def telling(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The columns in which something stands."""
    return [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
