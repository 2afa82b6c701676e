"""Intervals of one row: what its score says beyond the episodes, items and runs that made it.

Four intervals for four populations, each a half-width of a 95% interval. Each covers its own
population only; one is several times as wide as another. The docstrings say what each covers and
what not, in percent of 4,000 simulations (1,000 for what `ci95` does not cover) of Gaussian classes
and nearest centroids: 69 classes of 100 items, 5 ways, accuracy .60 with 1 shot and .77 with 5.
tests/harness/stats/test_coverage_rows.py repeats them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
FEWEST_SEEDS = 3
"""Training runs below which nothing is said about their spread, and nobody is ranked."""


Floats = NDArray[np.float64]

_SHARES: Floats = (np.arange(40) + 0.5) / 40
"""The shares of an episode's variance that classes may have, over which is averaged."""


class RowSummary(NamedTuple):
    """A row's numbers.

    Attributes:
        score: mean over episodes and seeds.
        ci95: half-width of the 95% t-interval over episodes, of the mean over seeds in each.
            Covers: these trained models on more episodes of these same classes and items (95.0%).
            Not: new items of these classes (84%), new classes (26%), another training run.
        seed_std: standard deviation (ddof 1) of the seeds' scores; None under 3 seeds.
        seed_ci95: half-width of the 95% t-interval over the seeds' scores; None under 3 seeds.
            Covers: the mean over all training runs, on these same episodes (94.6% with 3 seeds,
            94.8% with 5). Not: the score of one new run (84%, 69%), other episodes, items, classes.
    """

    score: float
    ci95: float
    seed_std: float | None
    seed_ci95: float | None = None


class DataIntervals(NamedTuple):
    """What a row's score is worth where the data are the sample, not the episodes.

    Both half-widths belong around this `score`, and neither covers another training run. Around the
    score of many overlapping episodes, which is more precise, they are too wide for new items.

    Attributes:
        episodes: how many disjoint episodes the data allowed (T).
        score: mean over them and the seeds.
        new_items: half-width of the 95% interval for these trained models on *new items of these
            classes*. Covers that (94.7% with 1 shot, 95.6% with 5); not new classes (66%, 62%).
        new_classes: the same on *new classes with new items*, of the population that these classes
            are a random sample of. Covers that (94.9% with 1 shot, 94.7% with 5); other kinds of
            classes are no such population. None where all episodes have the same classes, which say
            nothing of others.
    """

    episodes: int
    score: float
    new_items: float
    new_classes: float | None


def mean_t_interval(values: ArrayLike) -> tuple[float, float]:
    """Mean and half-width of its 95% t-interval (ddof 1).

    Args:
        values: (E,) scores, E at least 2, independent draws.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    sample = finite(values, ndim=1)
    n = sample.shape[0]
    if n < 2:
        raise ValueError(f"an interval needs two values or more, not {n}")
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return float(sample.mean()), quantile * float(sample.std(ddof=1)) / n**0.5


def row_summary(scores: ArrayLike) -> RowSummary:
    """The summary of a row.

    Args:
        scores: (S, E), seed s on episode e; every seed has met the same episodes.

    Raises:
        ValueError: no seed, fewer than two episodes, or a score that is not finite.
    """
    table = finite(scores, ndim=2)
    if table.shape[0] == 0:
        raise ValueError("a row without a training run has no score")
    score, ci95 = mean_t_interval(table.mean(axis=0))
    if len(table) < FEWEST_SEEDS:
        return RowSummary(score, ci95, None, None)
    of_seeds = table.mean(axis=1)
    return RowSummary(score, ci95, float(of_seeds.std(ddof=1)), mean_t_interval(of_seeds)[1])


def data_intervals(scores: ArrayLike, classes: ArrayLike) -> DataIntervals | None:
    """The intervals that take the data as the sample, from disjoint episodes.

    Each item is in at most one episode, so episodes are independent but for the classes that recur
    (drawn without replacement: Lafargue et al. 2024, arXiv:2409.02850). The plain t-interval over
    them covers neither population. The draw takes all classes about equally often, so differences
    between classes hardly move the mean for *these* classes, and it is too wide (covers 98.1% with
    1 shot, 98.9% with 5). For *new* classes these differences count once a class, not once an
    episode, and it is far too narrow (76%, 76%). So the score of episode t is taken apart,

        y_t = mu + sum of a_c over its classes + e_t,    var(a_c) = A,  var(e_t) = E,

    and with n_c episodes for class c of C, N classes each, the mean over episodes has the variance

        E/T + A * sum_c (n_c - NT/C)^2 / T^2    around the mean of these classes, equally weighted,
        E/T + A * sum_c n_c^2 / T^2             around the mean of their population.

    Episodes with common classes tell the ratio A/E, but roughly: the best guess alone would make
    intervals too narrow. Given the ratio, the mean is t-distributed; the half-width is the quantile
    of that mixed over the ratio's posterior (normal theory; Jeffreys' prior for E; for the classes'
    share h = NA / (NA + E) a uniform prior, and for `new_items` the density 2 (1 - h) or 2 h,
    whichever makes the interval wider). Where classes have 20 to 200 items, `new_items` is a little
    too narrow (93.6%). Where no class recurs, nothing tells A from E: both are the plain t-interval
    then, right for new classes (94.8% of 800) and too wide for new items (97.9%).

    Args:
        scores: (S, T), seed s on disjoint episode t; the same episodes for all seeds. T may be 0.
        classes: (T, Q) data-set class ids of the queries. Classes may have unequally many items, as
            long as their number has nothing to do with how hard a class is. Each counts alike in an
            episode, however many queries it has there.

    Returns:
        None with fewer than two episodes.

    Raises:
        ValueError: no seed, a score that is not finite, or classes of other episodes.
    """
    table, drawn = finite(scores, ndim=2), np.asarray(classes)
    if drawn.ndim != 2 or len(drawn) != table.shape[1] or len(table) == 0:
        raise ValueError(f"classes {drawn.shape} are not of the episodes of scores {table.shape}")
    episodes = table.shape[1]
    if episodes < 2:
        return None
    values = table.mean(axis=0)
    score, plain = mean_t_interval(values)
    has = _incidence(drawn)
    of_class = has.sum(axis=0)  # n_c
    if np.ptp(values) == 0.0:
        varied = not (of_class == episodes).all()
        return DataIntervals(episodes, score, 0.0, 0.0 if varied else None)
    if of_class.max() == 1:
        return DataIntervals(episodes, score, plain, plain)
    width = _Mixture.of(values, has)
    uneven = float(np.square(of_class - of_class.mean()).sum())
    new_items = max(width(uneven, 1.0 - _SHARES), width(uneven, _SHARES))
    if (of_class == episodes).all():
        return DataIntervals(episodes, score, new_items, None)
    new_classes = width(float(np.square(of_class).sum()), np.ones_like(_SHARES))
    return DataIntervals(episodes, score, new_items, new_classes)


class _Mixture(NamedTuple):
    """Student distributions of a mean over episodes, one for each share in `_SHARES`.

    Attributes:
        episodes: T.
        ratio: (H,) A/E.
        noise: (H,) E, estimated given the ratio.
        likelihood: (H,) of the share, restricted (the mean and E integrated out), up to a factor.
    """

    episodes: int
    ratio: Floats
    noise: Floats
    likelihood: Floats

    @classmethod
    def of(cls, values: Floats, has: Floats) -> _Mixture:
        """Values (T,) and which classes (C) an episode has, (T, C)."""
        episodes, free = len(values), len(values) - 1
        ratio = _SHARES / (1.0 - _SHARES) / has.sum(axis=1).mean()
        # Along the left singular vectors of the centred incidence the scores are independent, with
        # variances E + A s^2; in all other directions, E.
        axes, singular, _ = np.linalg.svd(has - has.mean(axis=0), full_matrices=False)
        centred = values - values.mean()
        along = np.square(centred @ axes)
        rest = max(float(centred @ centred - along.sum()), 0.0)
        scale = 1.0 + ratio[:, None] * np.square(singular)
        squares = (along / scale).sum(axis=1) + rest
        log = -0.5 * np.log(scale).sum(axis=1) - 0.5 * free * np.log(squares)
        return cls(episodes, ratio, squares / free, np.exp(log - log.max()))

    def __call__(self, classes: float, prior: Floats) -> float:
        """Half-width where A counts `classes` / T^2 times; prior (H,) of the shares."""
        free = self.episodes - 1
        weights = self.likelihood * prior
        weights /= weights.sum()
        variance = self.noise * (1.0 / self.episodes + self.ratio * classes / self.episodes**2)
        error = np.sqrt(variance)

        def outside(half_width: float) -> float:
            """Probability beyond it, less the 5% that are sought."""
            beyond = 2.0 * float(weights @ stdtr(free, -half_width / error))
            return beyond - (1.0 - CONFIDENCE)

        most = float(stdtrit(free, 0.5 + CONFIDENCE / 2) * error.max())
        return float(brentq(outside, 0.0, 1.01 * most, xtol=1e-9 * most))


def _incidence(classes: NDArray[np.generic]) -> Floats:
    """(T, C), 1 where an episode of class ids (T, Q) has the class."""
    ids, place = np.unique(classes, return_inverse=True)
    has = np.zeros((len(classes), len(ids)))
    has[np.arange(len(classes))[:, None], place.reshape(classes.shape)] = 1.0
    return has


def finite(values: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """The values as float64, with that many dimensions and all finite, or ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{array.ndim} dimensions of scores where {ndim} are needed")
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    return array
