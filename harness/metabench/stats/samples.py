"""Sample sizes: how many more seeds or episodes would tell two rows apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, chdtri, ndtr

from metabench.stats.differences import ALPHA, Difference, errors_of, half_width

POWER = 0.8
MOST_SEEDS = 1_000
MOST_EPISODES = 1_000_000
"""More than these nobody will run: what they can't tell counts as out of reach."""
_SHARES = (np.arange(32) + 0.5) / 32
"""Quantiles at which a chi-squared distribution is met, for a mean over it."""
_FINEST = 40
"""Steps of bisection for a difference, from 1."""


class Needed(NamedTuple):
    """What it would take to tell two rows apart, if their true difference were the one observed.

    Attributes:
        seeds: more seeds of each row, with the episodes as they are; None where no number of them
            is enough, or where too few runs say how far runs lie apart.
        episodes: more episodes, with the seeds as they are; None where no number is enough.
        seeds_floor: the smallest difference that any number of seeds (`MOST_SEEDS`) could tell on
            these episodes; None where too few runs say it.
        episodes_floor: the smallest that any number of episodes (`MOST_EPISODES`) could tell with
            these seeds.
    """

    seeds: int | None
    episodes: int | None
    seeds_floor: float | None
    episodes_floor: float


def needed(found: Difference, power: float = POWER, alpha: float = ALPHA) -> Needed:
    """How many more seeds, or else episodes, two rows need.

    The parts of the variance are taken as they were estimated, and shrink with the seeds and
    episodes that they are of. With 3 seeds they are known within a factor of several, and so is
    what comes of them: a plan, not a promise. What is sought is a chance of `power` that the
    interval of `difference` lies on the right side of zero.

    Args:
        found: of `difference` or `all_pairs`.
        power: chance of telling, between 0 and 1.
        alpha: level; for one pair of a table's m by Holm, at worst .05 / m.
    """
    size, seeds, episodes = abs(found.difference), max(found.seeds, 1), found.episodes

    def told(size: float, more_seeds: int, more_episodes: int) -> bool:
        return _power(found, size, seeds + more_seeds, episodes + more_episodes, alpha) >= power

    more_episodes = _least(lambda n: told(size, 0, n), MOST_EPISODES)
    episodes_floor = _least_size(lambda any_size: told(any_size, 0, MOST_EPISODES))
    if found.basis == "these checkpoints":
        return Needed(None, more_episodes, None, episodes_floor)
    more_seeds = _least(lambda n: told(size, n, 0), MOST_SEEDS)
    seeds_floor = _least_size(lambda any_size: told(any_size, MOST_SEEDS, 0))
    return Needed(more_seeds, more_episodes, seeds_floor, episodes_floor)


def _power(found: Difference, size: float, seeds: int, episodes: int, alpha: float) -> float:
    """Chance that a difference of that size is significant with so many seeds and episodes."""
    before, then = max(found.seeds, 1), found.episodes
    rest = found.rest * before * then
    of_run = max(found.runs * before / _larger(found, before) - rest / then, 0.0)
    of_task = max(found.tasks * then - rest / before, 0.0)
    truly = (of_run + rest / episodes) / seeds
    runs = truly * _larger(found, seeds)
    tasks = (of_task + rest / seeds) / episodes
    both = rest / (seeds * episodes)
    # At least: where both rows take the pool's spread, it gains the new runs of both.
    df, table_df = (n + seeds - before for n in (found.runs_df, found.table_df))
    error = math.sqrt(max(truly + tasks - both, truly, tasks))
    if error == 0.0:
        return 1.0 if size > 0.0 else 0.0

    def width(runs: float) -> float:
        """What a difference has to reach: by itself, and among all of a table."""
        alone = errors_of(runs, tasks, both, df, seeds, episodes)
        in_table = errors_of(runs, tasks, both, table_df, seeds, episodes)
        return max(half_width(alone), half_width(in_table, alpha))

    # That hangs on how far apart the runs come out: chi-squared about `runs`.
    widths = (width(runs * drawn) for drawn in chdtri(df, _SHARES) / df)
    return fmean(float(ndtr((size - width) / error)) for width in widths)


def _larger(found: Difference, seeds: int) -> float:
    """Expected max(s**2, v) / v of a row's own variance s**2, of `seeds` runs, and the pool's, v.

    With k degrees of freedom, 1 + E[(chi2(k) / k - 1)+] = 1 + P(chi2(k + 2) > k) - P(chi2(k) > k).
    """
    if found.basis != "pooled seeds":
        return 1.0
    k = seeds - 1
    return 1.0 + float(chdtrc(k + 2, k) - chdtrc(k, k))


def _least(enough: Callable[[int], bool], most: int) -> int | None:
    """The least number from 0 to `most` that is enough, if any is; more is never worse."""
    low, high = -1, most
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _least_size(enough: Callable[[float], bool]) -> float:
    """The smallest difference that is enough."""
    low, high = 0.0, 1.0
    while not enough(high):
        high *= 2
    for _ in range(_FINEST):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
