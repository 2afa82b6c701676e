"""Paired tests: two rows on the same episodes."""

from __future__ import annotations

from typing import NamedTuple

from numpy.typing import ArrayLike
from scipy.special import stdtr

from metabench.stats.intervals import finite, mean_t_interval


class PairedTest(NamedTuple):
    """What the differences on the same episodes say.

    Attributes:
        difference: mean of first - second.
        ci95: half-width of its 95% t-interval.
        p: two-sided p-value of "no difference" (paired t-test).
    """

    difference: float
    ci95: float
    p: float


def paired_t_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Compare two trained models, or an untrained one with a trained one, episode by episode.

    It says whether *these models* differ on more such episodes. It doesn't say whether two
    algorithms do: two training runs of one algorithm, alike but for the seed, often differ.

    Args:
        first: (E,) scores, E at least 2.
        second: (E,) scores on the same episodes in the same order.

    Raises:
        ValueError: other shapes, or a score that is not finite.
    """
    one, other = finite(first, ndim=1), finite(second, ndim=1)
    if one.shape != other.shape:
        raise ValueError(f"{len(one)} and {len(other)} episodes are not the same ones")
    differences = one - other
    mean, half_width = mean_t_interval(differences)
    n = len(differences)
    error = float(differences.std(ddof=1)) / n**0.5
    if error == 0.0:  # the same difference everywhere
        return PairedTest(mean, half_width, 1.0 if mean == 0.0 else 0.0)
    return PairedTest(mean, half_width, 2.0 * float(stdtr(n - 1, -abs(mean) / error)))
