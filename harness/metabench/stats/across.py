"""Algorithms over several data sets: Friedman's test, Wilcoxon's in pairs, and who is tied.

What is independent here is the data set: one score of each algorithm on each (Demsar 2006,
"Statistical comparisons of classifiers over multiple data sets"). Friedman's test asks whether the
mean ranks differ at all; where they do, Wilcoxon's signed-rank test compares in pairs, corrected by
Holm for all pairs (Benavoli, Corani and Mangili 2016, "Should we really use post-hoc tests based on
mean-ranks?": whether two algorithms differ must not hang on who else is in the table).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabench.stats.differences import ALPHA
from metabench.stats.intervals import finite

FEWEST_DATASETS = 6
"""The signs of 5 differences have a two-sided p of .0625 at the least."""
_FEW = 13
"""Up to here all signs of tied differences are gone through; above it is SciPy's approximation."""


class Across(NamedTuple):
    """Algorithms over data sets; the best has the lowest rank.

    Attributes:
        algorithms: A names, in the order of what follows: by mean rank, then by name.
        datasets: D names.
        mean_ranks: of each algorithm over the data sets; 1 is the best, ties share their mean.
        friedman_p: of all algorithms being alike; None where there are only two.
        p_holm: of each pair i < j of `algorithms`, Wilcoxon's, corrected for all pairs.
        least_p: the smallest that `p_holm` could be with so many data sets and pairs. Where it is
            .05 or more, no pair can be told apart, however far apart it is.
        groups: sets of algorithms, as large as possible, of which no pair is told apart; indices
            into `algorithms`, each in order. All of them where Friedman's p is .05 or more.
            Algorithms that differ from all others are in a group alone.
    """

    algorithms: tuple[str, ...]
    datasets: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    friedman_p: float | None
    p_holm: dict[tuple[int, int], float]
    least_p: float
    groups: tuple[tuple[int, ...], ...]


def across_datasets(
    scores: ArrayLike, datasets: Sequence[str], algorithms: Sequence[str]
) -> Across:
    """Compare algorithms over data sets.

    Args:
        scores: (D, A), higher is better: one score of each algorithm on each data set. Several
            protocols of one data set are one data set: they share its classes and items, so take
            one of them, or their mean.
        datasets: D names, D at least 6.
        algorithms: A names, A at least 2.

    Raises:
        ValueError: too few data sets or algorithms, one twice, a missing score or other shapes.
    """
    table = finite(scores, ndim=2)
    _check(table, datasets, algorithms)
    from scipy.stats import rankdata

    means = rankdata(-_rounded(table), axis=1).mean(axis=0)
    order = sorted(range(len(algorithms)), key=lambda a: (means[a], algorithms[a]))
    table, names = table[:, order], tuple(algorithms[a] for a in order)
    friedman_p = _friedman(table)
    p_holm = _pairs(table)
    apart = (
        {pair for pair, p in p_holm.items() if p < ALPHA}
        if friedman_p is None or friedman_p < ALPHA
        else set()
    )
    return Across(
        names,
        tuple(datasets),
        tuple(float(means[a]) for a in order),
        friedman_p,
        p_holm,
        min(1.0, len(p_holm) * 2.0 ** (1 - len(table))),
        _groups(len(names), apart),
    )


def _check(table: NDArray[np.float64], datasets: Sequence[str], algorithms: Sequence[str]) -> None:
    if table.shape != (len(datasets), len(algorithms)):
        raise ValueError(
            f"{table.shape} scores are not of {len(datasets)} data sets and"
            f" {len(algorithms)} algorithms"
        )
    for what, names in (("data set", datasets), ("algorithm", algorithms)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"{what} {twice[0]!r} is there twice; protocols of one data set are one data set"
            )
    if len(datasets) < FEWEST_DATASETS:
        raise ValueError(
            f"{len(datasets)} data sets are too few: with fewer than {FEWEST_DATASETS} even an"
            " algorithm that wins on each of them isn't significantly better (Wilcoxon signed"
            " rank); protocols of one data set are not data sets"
        )
    if len(algorithms) < 2:
        raise ValueError("one algorithm can't be compared")


def _friedman(table: NDArray[np.float64]) -> float | None:
    """The p of Friedman's test; 1 where all algorithms are tied everywhere."""
    from scipy.stats import friedmanchisquare

    rounded = _rounded(table)
    if table.shape[1] < 3:
        return None
    if (rounded == rounded[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*rounded.T).pvalue)


def _pairs(table: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """Wilcoxon's p of each pair of columns, corrected by Holm."""
    from statsmodels.stats.multitest import multipletests

    places = list(combinations(range(table.shape[1]), 2))
    p = [_wilcoxon(_rounded(table[:, i] - table[:, j])) for i, j in places]
    adjusted = multipletests(p, method="holm")[1]
    return {place: float(value) for place, value in zip(places, adjusted, strict=True)}


def _wilcoxon(gaps: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; data sets without a difference are left out."""
    from scipy.stats import PermutationMethod, wilcoxon

    gaps = gaps[gaps != 0.0]
    if len(gaps) == 0:
        return 1.0
    tied = len(np.unique(np.abs(gaps))) < len(gaps)
    if tied and len(gaps) <= _FEW:
        return float(wilcoxon(gaps, method=PermutationMethod(n_resamples=2**_FEW)).pvalue)
    return float(wilcoxon(gaps).pvalue)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """So that what is tied but for rounding errors is tied."""
    return np.round(values, 9)


def _groups(count: int, apart: set[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Maximal cliques of the graph of those that are not apart."""
    import networkx

    tied = networkx.Graph()
    tied.add_nodes_from(range(count))
    tied.add_edges_from(pair for pair in combinations(range(count), 2) if pair not in apart)
    return tuple(sorted(tuple(sorted(clique)) for clique in networkx.find_cliques(tied)))
