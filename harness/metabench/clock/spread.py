"""The statistics of a series of times: median, quartiles, and an interval over blocks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 10
"""A series is cut into so many stretches of time; neighbours in time share what disturbs them."""
RESAMPLES = 1000
UNSTABLE = 0.10
"""A series whose quartiles lie further apart than this share of its median is unstable."""


@dataclass(frozen=True)
class Spread:
    """A series of times in one number, and how far to believe it.

    Attributes:
        median, iqr: and the range between the quartiles, in the series' own unit.
        low, high: 95% bootstrap interval of the median, blocks of the series drawn anew.
        samples: how many times.
    """

    median: float
    iqr: float
    low: float
    high: float
    samples: int

    @property
    def unstable(self) -> bool:
        return self.iqr > UNSTABLE * self.median


def spread(series: Sequence[float], seed: int = 0) -> Spread:
    """The spread of two or more times, in the order in which they were taken."""
    values = np.asarray(series, dtype=np.float64)
    first, _, third = statistics.quantiles(values.tolist(), n=4)
    median = float(np.median(values))
    low, high = block_interval(values, seed)
    # A rest that fills no block is left out of the interval, and may have moved the median.
    return Spread(median, third - first, min(low, median), max(high, median), len(values))


def block_interval(
    values: NDArray[np.float64], seed: int = 0, blocks: int = BLOCKS
) -> tuple[float, float]:
    """95% percentile interval of the median of values (n,), from resampled blocks."""
    count = min(blocks, len(values))
    size = len(values) // count
    cut = values[: count * size].reshape(count, size)
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    medians = np.median(cut[drawn].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)
