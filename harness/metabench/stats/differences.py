"""Differences between rows: how far two algorithms are apart, given training runs and episodes.

A row is a set of training runs, each of which met the same test episodes. With X[r, s, e] the score
of row r, seed s, on episode e, the model is a crossed one,

    X[r, s, e] = mean[r] + run[r, s] + task[r, e] + rest[r, s, e],                             (1)

where `run` is what a training seed makes of an algorithm and `task` is how an episode suits it. The
difference D[s, e] of two rows has three sources of error: S runs, E episodes, S*E rests. Mean
squares estimate its mean's variance (Cornfield and Tukey 1956), Satterthwaite's formula (1946)
their degrees of freedom:

    Var = MS(runs) / (S*E) + MS(tasks) / (S*E) - MS(rest) / (S*E)                              (2)

The interval is never narrower than that of the runs alone or of the episodes alone: Satterthwaite's
degrees of freedom are too many whenever a part with few of them comes out small by chance.

Three seeds leave MS(runs) of one pair 2 degrees of freedom. So a table of three rows or more lends
each pair its pooled spread: a row's spread is the table's, or its own where that is larger, and the
pool's degrees of freedom are the fewer, the less equal the spreads are (Satterthwaite again, with
unbiased fourth powers). A test of equal spreads that switches pooling on or off (Bartlett's) was
tried and left out. With 3 seeds it hardly sees unequal spreads, and where they are as unequal as
those of metric-based and gradient-based algorithms, 6 to 10% of tables of 12 equally good rows had
a false difference in them; and one row could take pooling away from all others. Spreads are pooled
within rows, not after a two-way layout: what all runs of one seed share widens the interval then,
and rows of different seeds can be pooled too.

Why not something simpler. A t-test over seed means leaves `task` out, which all seeds of a row
share: its 95% intervals hold the truth in 88 to 93 of 100 simulated cases. Resampling seeds and
episodes (the pigeonhole bootstrap of Owen 2007) counts `rest` three times: 96 to 98 of 100. The
intervals here, with spreads such as are found (tests/harness/stats/test_coverage_pairs.py):

- `own seeds`, 3 or 5: 94.3 to 95.9.
- `pooled seeds`: 94.7 to 96.8, the more the larger the share of seeds in the spread: a row's own
  spread counts only where it is larger. Where spreads are unequal (standard deviations lognormal,
  sigma .7), 96.5 over all pairs of 12 rows; of the two noisiest 92, where a switch by Bartlett's
  test has 87. 2 to 4% of tables of equally good rows have a false difference, whether or not
  their spreads are equal.
- `pooled seeds`, where one row doesn't depend on its seed, and `no spread of seeds`: 94.7 to 96.

They speak of other training runs and other episodes of this data. They don't speak of other data,
other classes or other settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from metabench.stats.intervals import CONFIDENCE, FEWEST_SEEDS, finite

ALPHA = round(1 - CONFIDENCE, 12)
FEWEST_ROWS = 3
"""Rows with a spread of seeds below which there is nothing to pool."""

Runs = Mapping[int, ArrayLike]
"""A row's training runs: seed -> (E,) scores, on the same episodes in every run of every row."""

Basis = Literal["pooled seeds", "own seeds", "no spread of seeds", "these checkpoints"]


class SeedSpread(NamedTuple):
    """How far training runs of one row lie apart, pooled over the rows of a table.

    Attributes:
        variance: of one run's mean over the episodes, about its row's.
        df: degrees of freedom of that estimate.
        rows: over how many rows it is pooled.
    """

    variance: float
    df: float
    rows: int


class Difference(NamedTuple):
    """How far the first row is from the second.

    Attributes:
        difference: of the means, first - second.
        low, high: its 95% interval, of this pair alone.
        p: two-sided, of no difference, of this pair alone.
        p_holm: the same, corrected for all pairs of a table (`all_pairs`).
        df: degrees of freedom behind p.
        basis: where the spread of seeds is from. `pooled seeds`: all rows of the table; `own
            seeds`: this pair; `no spread of seeds`: neither row depends on its seed, the episodes
            decide; `these checkpoints`: under 3 seeds in common, nothing is said of another run.
        seeds, episodes: over how many of each; 0 seeds where rows without a common one were
            compared as these checkpoints.
        runs, tasks, rest: estimated variances of the difference, from training runs and from
            episodes, and what both of them count; see (2).
        runs_df: degrees of freedom of `runs`.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    df: float
    basis: Basis
    seeds: int
    episodes: int
    runs: float
    tasks: float
    rest: float
    runs_df: float


def pooled_spread(rows: Sequence[ArrayLike]) -> SeedSpread | None:
    """The spread of seeds, pooled over the rows of a table.

    Rows that don't depend on their seed (all runs score alike in each episode) and rows of fewer
    than 3 seeds say nothing of it and are left out. None where fewer than 3 rows remain.

    Args:
        rows: (S, E) scores of each row; S may differ.
    """
    tables = [finite(row, ndim=2) for row in rows]
    means = [t.mean(axis=1) for t in tables if len(t) >= FEWEST_SEEDS and not _constant(t)]
    if len(means) < FEWEST_ROWS:
        return None
    df = np.array([len(row) - 1.0 for row in means])
    spreads = np.array([row.var(ddof=1) for row in means])
    total = float(df @ spreads)
    if total == 0.0:  # runs differ in episodes, and nowhere in their means
        return None
    # Satterthwaite, with df / (df + 2) * spread**2 for the square of a row's true variance.
    equal = total**2 / float(df**2 / (df + 2) @ spreads**2)
    return SeedSpread(total / float(df.sum()), min(equal, float(df.sum())), len(means))


def difference(first: ArrayLike, second: ArrayLike, pooled: SeedSpread | None = None) -> Difference:
    """Compare two rows on the same seeds and the same episodes; see (2).

    Args:
        first, second: (S, E) scores; seed s and episode e are the same in both.
        pooled: what `pooled_spread` says of the table that both stand in.

    Raises:
        ValueError: other shapes, fewer than two episodes, or a score that is not finite.
    """
    one, other = finite(first, ndim=2), finite(second, ndim=2)
    if one.shape != other.shape or one.shape[0] < 1 or one.shape[1] < 2:
        raise ValueError(
            f"scores {one.shape} and {other.shape} are not of the same runs on two or more episodes"
        )
    gap = one - other
    seeds, episodes = gap.shape
    tasks = float(gap.mean(axis=0).var(ddof=1)) / episodes
    if _constant(one) and _constant(other):
        basis: Basis = "these checkpoints" if seeds < FEWEST_SEEDS else "no spread of seeds"
        return _judged(gap, basis, runs=0.0, tasks=tasks, rest=0.0, runs_df=1.0)
    if seeds < FEWEST_SEEDS:
        return _judged(gap, "these checkpoints", runs=0.0, tasks=tasks, rest=0.0, runs_df=1.0)
    left = gap - gap.mean(axis=0) - gap.mean(axis=1, keepdims=True) + gap.mean()
    rest = float((left**2).sum()) / ((seeds - 1) * (episodes - 1)) / (seeds * episodes)
    if pooled is None:
        runs = float(gap.mean(axis=1).var(ddof=1)) / seeds
        return _judged(gap, "own seeds", runs, tasks, rest, runs_df=seeds - 1.0)
    own = [float(row.mean(axis=1).var(ddof=1)) for row in (one, other) if not _constant(row)]
    runs = sum(max(spread, pooled.variance) for spread in own) / seeds
    return _judged(gap, "pooled seeds", runs, tasks, rest, pooled.df)


def all_pairs(rows: Sequence[Runs]) -> dict[tuple[int, int], Difference]:
    """Every pair of a table's rows (i < j: i - j), p corrected for all pairs by Holm (1979).

    Rows are compared on the seeds that both have. Those with fewer than 3 in common are compared as
    they are, over all runs of each, and make a family of pairs of their own: what is said of these
    checkpoints and what is said of algorithms are not corrected for each other.

    Args:
        rows: one dataset x protocol x inference mode.

    Raises:
        ValueError: a row without a run, other numbers of episodes, or a score that is not finite.
    """
    pooled = pooled_spread([_stacked(runs, runs) for runs in rows])
    found = {
        (i, j): _of_runs(rows[i], rows[j], pooled) for i, j in combinations(range(len(rows)), 2)
    }
    checkpoints = {place: f for place, f in found.items() if f.basis == "these checkpoints"}
    algorithms = {place: f for place, f in found.items() if place not in checkpoints}
    corrected = _holm(checkpoints) | _holm(algorithms)
    return {place: corrected[place] for place in found}


def _of_runs(first: Runs, second: Runs, pooled: SeedSpread | None) -> Difference:
    common = [seed for seed in first if seed in second]
    if len(common) >= FEWEST_SEEDS:
        return difference(_stacked(first, common), _stacked(second, common), pooled)
    one, other = (_stacked(runs, runs).mean(axis=0)[None] for runs in (first, second))
    return difference(one, other)._replace(seeds=len(common))


def _stacked(runs: Runs, seeds: Sequence[int] | Runs) -> NDArray[np.float64]:
    """(S, E) scores of these seeds, in their order."""
    if not runs:
        raise ValueError("a row without a training run can't be compared")
    return np.stack([finite(runs[seed], ndim=1) for seed in seeds])


def _holm(family: dict[tuple[int, int], Difference]) -> dict[tuple[int, int], Difference]:
    from statsmodels.stats.multitest import multipletests

    if not family:
        return {}
    adjusted = multipletests([pair.p for pair in family.values()], method="holm")[1]
    pairs = zip(family.items(), adjusted, strict=True)
    return {place: pair._replace(p_holm=float(p)) for (place, pair), p in pairs}


def _constant(row: NDArray[np.float64]) -> bool:
    """Whether every run scores the same in each episode."""
    return bool((row == row[0]).all())


def errors_of(
    runs: float, tasks: float, rest: float, runs_df: float, episodes: int
) -> list[tuple[float, float]]:
    """(variance, degrees of freedom): of the difference, see (2), and of each part that it has."""
    parts = [(tasks, episodes - 1.0)]
    if runs > 0.0:
        parts.append((runs, runs_df))
    variance = max(runs + tasks - rest, runs, tasks)
    terms = sum(part**2 / df for part, df in parts)
    return [(variance, variance**2 / terms), *parts] if terms > 0.0 else parts


def half_width(errors: list[tuple[float, float]], alpha: float = ALPHA) -> float:
    """Half the widest of the two-sided t-intervals that `errors_of` names."""
    return max(float(stdtrit(df, 1 - alpha / 2)) * math.sqrt(v) for v, df in errors)


def _judged(
    gap: NDArray[np.float64], basis: Basis, runs: float, tasks: float, rest: float, runs_df: float
) -> Difference:
    """The widest interval, and the largest p."""
    mean, (seeds, episodes) = float(gap.mean()), gap.shape
    errors = errors_of(runs, tasks, rest, runs_df, episodes)
    half = half_width(errors)
    p, _, df = max((_p_value(mean, variance, df), variance, df) for variance, df in errors)
    return Difference(
        mean, mean - half, mean + half, p, p, df, basis, seeds, episodes, runs, tasks, rest, runs_df
    )


def _p_value(mean: float, variance: float, df: float) -> float:
    if variance == 0.0:  # the same difference everywhere
        return 1.0 if mean == 0.0 else 0.0
    return 2.0 * float(stdtr(df, -abs(mean) / math.sqrt(variance)))
