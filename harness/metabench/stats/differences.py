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
each pair its pooled spread: a row's spread is the table's, or its own where that is larger. How
sure that is, is asked twice:

- Of this pair. What it stands on is a weighted sum of the rows' own variances, and Satterthwaite's
  formula for that sum (`_pair_spread`) says how many degrees of freedom it has: as many as the pool
  where all spreads are alike, and those of one row where one has nearly all of it. Interval and p.
- Of the table. With 2 degrees of freedom and 66 pairs Holm's first step asks for a t of 36: nothing
  would ever be told from a noisy row, and it would rank high. So what is corrected for all pairs
  has the pool's degrees of freedom, fewer the less equal spreads are. `p_holm` is no less than p:
  what is significant in the table is so by itself, with an interval on one side of zero.

A test of equal spreads that switches pooling on or off (Bartlett's) was tried and left out: with 3
seeds it hardly sees unequal spreads, and one row could take pooling away from all others. Empirical
Bayes (Smyth 2004) was tried too: it shrinks the spread of the one noisy row, whose intervals then
hold the truth in 77 to 87 of 100. Spreads are pooled within rows, not after a two-way layout: what
all runs of one seed share widens the interval then.

Why not something simpler. A t-test over seed means leaves `task` out, which all seeds of a row
share: its 95% intervals hold the truth in 88 to 93 of 100 simulated cases. Resampling seeds and
episodes (the pigeonhole bootstrap of Owen 2007) counts `rest` three times: 96 to 98 of 100. Of the
intervals here, with spreads such as are found (tests/harness/stats/test_coverage_pairs.py):

- `own seeds`, 3 or 5: 94.1 to 95.6.
- `pooled seeds`, equal spreads: 95.3 to 97.8, the more the larger the share of seeds in the spread:
  a row's own spread counts only where it is larger. It is meant to hold at least 95.
- `pooled seeds`, one row's spread 3 to 10 times that of all others: 93.7 to 95.4 for its pairs, 98
  and more for pairs of the others, whose pool it is in.
- `pooled seeds`, where one row doesn't depend on its seed, and `no spread of seeds`: 95.4 to 97.

1.8 to 2.3% of tables of 6 equally good rows have a significant difference in them, 1.5% where their
spreads are unequal; where seeds are all the noise there is, at most 4.7% of tables of 3 to 12 rows
with one that is 3 to 10 times as noisy.

Episodes overlap in items and classes. For what is meant here, other episodes of the same data, they
are independent draws all the same: the data are given.

They speak of other training runs and other episodes of this data. They don't speak of other data,
other classes or other settings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from metabench.stats.intervals import CONFIDENCE, FEWEST_SEEDS, finite

ALPHA = round(1 - CONFIDENCE, 12)
FEWEST_ROWS = 3
"""Rows with a spread of seeds below which there is nothing to pool."""

_DECIMALS = 12
Values = NDArray[np.float64]

Runs = Mapping[int, ArrayLike]
"""A row's training runs: seed -> (E,) scores, on the same episodes in every run of every row."""

Place = TypeVar("Place", bound=Hashable)
Basis = Literal["pooled seeds", "own seeds", "no spread of seeds", "these checkpoints"]


class SeedSpread(NamedTuple):
    """How far training runs of one row lie apart, pooled over the rows of a table.

    Attributes:
        variance: of one run's mean over the episodes, about its row's.
        df: degrees of freedom of that estimate, by Satterthwaite: `total_df` where rows have the
            same spread, and the fewer, the less alike they are.
        total_df: of all rows together.
        noise: half the variance of `variance` as an estimate; see `_pair_spread`.
        rows: over how many rows it is pooled.
    """

    variance: float
    df: float
    total_df: float
    noise: float
    rows: int


class Difference(NamedTuple):
    """How far the first row is from the second.

    Attributes:
        difference: of the means, first - second.
        low, high: its 95% interval, of this pair alone.
        p: two-sided, of no difference, of this pair alone.
        p_holm: corrected for all pairs of a table (`all_pairs`), and no less than p.
        df: degrees of freedom behind p.
        basis: where the spread of seeds is from. `pooled seeds`: all rows of the table; `own
            seeds`: this pair; `no spread of seeds`: neither row depends on its seed, the episodes
            decide; `these checkpoints`: under 3 seeds in common, nothing is said of another run.
        seeds, episodes: over how many of each; 0 seeds where rows without a common one were
            compared as these checkpoints.
        runs, tasks, rest: estimated variances of the difference, from training runs and from
            episodes, and what both of them count; see (2).
        runs_df: degrees of freedom of `runs`; 1 without runs.
        table_df: those that it counts with among all pairs of a table; see the module.
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
    table_df: float


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
    total, weights = float(df.sum()), df / df.sum()
    variance = float(weights @ spreads)
    if variance == 0.0:  # runs differ in episodes, and nowhere in their means
        return None
    noise = float(weights**2 @ _noise(spreads, df))
    own_df = _satterthwaite(variance, noise, float(df.min()), total)
    return SeedSpread(variance, own_df, total, noise, len(means))


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
    # Means over other numbers of runs that are equal but for rounding are equal.
    gap = np.round(one - other, _DECIMALS)
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
        # Runs lie no closer together than `rest` makes them: less is by chance.
        runs = max(float(gap.mean(axis=1).var(ddof=1)) / seeds, rest)
        return _judged(gap, "own seeds", runs, tasks, rest, runs_df=seeds - 1.0)
    own = np.array([r.mean(axis=1).var(ddof=1) for r in (one, other) if not _constant(r)])
    spread, df = _pair_spread(own, seeds - 1.0, pooled)
    return _judged(gap, "pooled seeds", spread / seeds, tasks, rest, df, pooled.df)


def _pair_spread(own: Values, df: float, pooled: SeedSpread) -> tuple[float, float]:
    """The sum of the two rows' variances, each its own or the larger pool's, with its df.

    The pool is a weighted mean of the rows' variances, so the sum is one of them all, of row r with
    weight c[r]: its weight in the pool as often as that is taken, and 1 more if it keeps its own.

    Args:
        own: variance of each row that depends on its seed, one or two.
        df: degrees of freedom of each.
    """
    kept = own[own > pooled.variance]
    taken = len(own) - len(kept)
    total = taken * pooled.variance + float(kept.sum())
    # (c + 1)**2 = c**2 + 2 * c + 1 for those that keep their own.
    more = 2 * taken * df / pooled.total_df + 1
    noise = taken**2 * pooled.noise + more * float(_noise(kept, df).sum())
    return total, _satterthwaite(total, noise, df, pooled.total_df)


def _satterthwaite(total: float, noise: float, fewest: float, most: float) -> float:
    """Degrees of freedom of a weighted sum of variances, `noise` being half its variance.

    They are (expected sum)**2 / noise, and unbiased for the square is total**2 - 2 * noise.
    """
    return min(max(total**2 / noise - 2, fewest), most)


def _noise(variance: Values, df: Values | float) -> Values:
    """Half the variance of estimated variances of normal values, unbiased."""
    return variance**2 / (df + 2)


def all_pairs(rows: Sequence[Runs]) -> dict[tuple[int, int], Difference]:
    """Every pair of a table's rows (i < j: i - j), corrected for all pairs by Holm (1979).

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
    return by_holm(found)


def by_holm(found: Mapping[Place, Difference]) -> dict[Place, Difference]:
    """The same with p corrected, for these checkpoints and for algorithms apart."""
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


def _stacked(runs: Runs, seeds: Sequence[int] | Runs) -> Values:
    """(S, E) scores of these seeds, in their order."""
    if not runs:
        raise ValueError("a row without a training run can't be compared")
    return np.stack([finite(runs[seed], ndim=1) for seed in seeds])


def _holm(family: Mapping[Place, Difference]) -> dict[Place, Difference]:
    from statsmodels.stats.multitest import multipletests

    if not family:
        return {}
    adjusted = multipletests([_table_p(pair) for pair in family.values()], method="holm")[1]
    pairs = zip(family.items(), adjusted, strict=True)
    return {place: pair._replace(p_holm=max(float(p), pair.p)) for (place, pair), p in pairs}


def _table_p(pair: Difference) -> float:
    """Two-sided, of no difference, with the degrees of freedom that count in a table."""
    seeds = max(pair.seeds, 1)
    errors = errors_of(pair.runs, pair.tasks, pair.rest, pair.table_df, seeds, pair.episodes)
    return max(_p_value(pair.difference, variance, df) for variance, df in errors)


def _constant(row: Values) -> bool:
    """Whether every run scores the same in each episode."""
    return bool((row == row[0]).all())


def errors_of(
    runs: float, tasks: float, rest: float, runs_df: float, seeds: int, episodes: int
) -> list[tuple[float, float]]:
    """(variance, degrees of freedom): of the difference, see (2), and of each part that it has."""
    parts = [(tasks, episodes - 1.0)]
    if runs > 0.0:
        parts.append((runs, runs_df))
    variance = max(runs + tasks - rest, runs, tasks)
    terms = sum(part**2 / df for part, df in parts)
    if rest > 0.0:
        terms += rest**2 / ((seeds - 1) * (episodes - 1))
    return [(variance, variance**2 / terms), *parts] if terms > 0.0 else parts


def half_width(errors: list[tuple[float, float]], alpha: float = ALPHA) -> float:
    """Half the widest of the two-sided t-intervals that `errors_of` names."""
    return max(float(stdtrit(df, 1 - alpha / 2)) * math.sqrt(v) for v, df in errors)


def _judged(
    gap: Values,
    basis: Basis,
    runs: float,
    tasks: float,
    rest: float,
    runs_df: float,
    table_df: float | None = None,
) -> Difference:
    """The widest interval, and the largest p."""
    mean, (seeds, episodes) = float(gap.mean()), gap.shape
    errors = errors_of(runs, tasks, rest, runs_df, seeds, episodes)
    half = half_width(errors)
    p, _, df = max((_p_value(mean, variance, df), variance, df) for variance, df in errors)
    parts = runs, tasks, rest, runs_df, runs_df if table_df is None else table_df
    return Difference(mean, mean - half, mean + half, p, p, df, basis, seeds, episodes, *parts)


def _p_value(mean: float, variance: float, df: float) -> float:
    if variance == 0.0:  # the same difference everywhere
        return 1.0 if mean == 0.0 else 0.0
    return 2.0 * float(stdtr(df, -abs(mean) / math.sqrt(variance)))
