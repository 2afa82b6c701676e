"""What `metabench compare --fail-on-regression` tells a script."""

from __future__ import annotations

import click

from metabench.cli.compare_words import Kind, tally
from metabench.errors import StoreError
from metabench.leaderboard.compare import Comparison, Comparisons

REGRESSION = 1


def exit_code(kind: Kind, found: Comparisons) -> int:
    """Whether something got worse, which is said on standard error.

    Raises:
        StoreError: nothing that was judged did, and not everything could be judged.
    """
    rows = kind.name == "rows"
    worse = [pair for pair in found.regressions if not (rows and pair.of_checkpoints)]
    broken = [] if rows else [pair for pair in found.found if _broke(pair)]
    if worse or broken:
        told = [_worse(worse)] if worse else []
        told += [f"{len(broken)} failed that were finished before"] if broken else []
        click.echo(f"metabench: rows: {', '.join(told)} ({tally(kind, found)})", err=True)
        return REGRESSION
    _check_judged(kind, found)
    return 0


def _broke(pair: Comparison) -> bool:
    new, old = pair.statuses
    return new not in ("ok", "missing") and old == "ok"


def _worse(pairs: list[Comparison]) -> str:
    checkpoints = sum(pair.of_checkpoints for pair in pairs)
    few = f", {checkpoints} of these on checkpoints only (under 3 seeds)" if checkpoints else ""
    return f"{len(pairs)} significantly worse{few}"


def _check_judged(kind: Kind, found: Comparisons) -> None:
    """Raise StoreError where something may be worse and nobody knows."""
    why = "so nobody knows whether they are worse"
    if not found.compared:
        raise StoreError("no rows could be compared", why)
    if kind.name == "rows":
        if any(pair.of_checkpoints for pair in found.found):
            raise StoreError(
                "under 3 seeds in common: these checkpoints only, the algorithms can't be judged",
                "run the same 3 seeds of both",
            )
        if len(found.compared) < len(found.found):
            raise StoreError("the two rows couldn't be compared in every table", why)
        return
    # A row that had failed before can't be worse than it was.
    unjudged = [p for p in found.found if p.found is None and p.statuses[1] in ("ok", "missing")]
    lacking = [row for row in found.only_first if row.status == "missing"]
    if unjudged or found.only_second or (lacking and kind.name == "versions"):
        raise StoreError(f"not all rows could be judged: {tally(kind, found)}", why)
