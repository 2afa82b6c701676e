"""Intervals: how well the test episodes of a row tell its score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
FEWEST_SEEDS = 3
"""Training runs below which nothing is said about their spread, and nobody is ranked."""


class RowSummary(NamedTuple):
    """A row's numbers.

    Attributes:
        score: mean over episodes and seeds.
        ci95: half-width of the 95% t-interval over episodes, of the mean over seeds in each. It
            speaks of these trained models on more episodes, not of another training run.
        seed_std: standard deviation (ddof 1) of the seeds' scores; None under 3 seeds.
    """

    score: float
    ci95: float
    seed_std: float | None


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
    spread = float(table.mean(axis=1).std(ddof=1)) if len(table) >= FEWEST_SEEDS else None
    return RowSummary(score, ci95, spread)


def finite(values: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """The values as float64, with that many dimensions and all finite, or ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{array.ndim} dimensions of scores where {ndim} are needed")
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    return array
