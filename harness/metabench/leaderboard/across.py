"""The rows of a table over all of its data sets, where these are six or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from string import ascii_letters

from metabench.leaderboard.rows import TableRow
from metabench.leaderboard.sections import Section
from metabench.rendering import Row
from metabench.stats.across import FEWEST_DATASETS, Across, across_datasets

Method = tuple[str, str, str]
"""Algorithm, variant and backbone."""


def across(rows: Sequence[TableRow], inference: str) -> Across | None:
    """The methods of one inference mode over all data sets; None where these are too few.

    A method's score on a data set is its mean over the protocols that all data sets have. Methods
    that lack a score somewhere are left out.
    """
    found = [row for row in rows if row.inference == inference and row.numbers is not None]
    datasets = sorted({row.labels.dataset for row in found})
    # Two labels for one content, such as two class splits of it, are no two data sets.
    contents = {row.dataset_digest for row in found}
    if min(len(datasets), len(contents)) < FEWEST_DATASETS or len(datasets) != len(contents):
        return None
    protocols = set.intersection(
        *({r.labels.protocol for r in found if r.labels.dataset == d} for d in datasets)
    )
    scores = {
        (_method(row), row.labels.dataset, row.labels.protocol): row.score
        for row in found
        if row.score is not None
    }
    methods = sorted({method for method, _, _ in scores})
    whole = [m for m in methods if all((m, d, p) in scores for d in datasets for p in protocols)]
    if not protocols or len(whole) < 2:
        return None
    table = [[fmean(scores[m, d, p] for p in protocols) for m in whole] for d in datasets]
    return across_datasets(table, datasets, [_name(method) for method in whole])


def across_sections(rows: Sequence[TableRow]) -> list[Section]:
    """A section for each inference mode."""
    modes = [mode for mode, _ in groupby(sorted({r.inference for r in rows if r.inference}))]
    return [_section(mode, found) for mode in modes if (found := across(rows, mode)) is not None]


def _section(mode: str, found: Across) -> Section:
    letters: Mapping[int, str] = {
        place: "".join(
            ascii_letters[g % len(ascii_letters)]
            for g, group in enumerate(found.groups)
            if place in group
        )
        for place in range(len(found.algorithms))
    }
    ranks = zip(found.algorithms, found.mean_ranks, strict=True)
    rows: list[Row] = [
        {"method": name, "mean_rank": rank, "tied": letters[place]}
        for place, (name, rank) in enumerate(ranks)
    ]
    friedman = "" if found.friedman_p is None else f"Friedman's test: p = {found.friedman_p:.4f}. "
    weak = " With so few data sets no pair can be told apart." if found.least_p >= 0.05 else ""
    return Section(
        title=f"all {len(found.datasets)} data sets, {mode}",
        facts=f"mean ranks over {', '.join(found.datasets)}",
        note=f"{friedman}Methods that share a letter can't be told apart (Wilcoxon, Holm).{weak}",
        columns=["method", "mean_rank", "tied"],
        rows=rows,
    )


def _method(row: TableRow) -> Method:
    return row.labels.algorithm, row.labels.variant, row.labels.backbone


def _name(method: Method) -> str:
    algorithm, variant, backbone = method
    return f"{algorithm}/{variant}@{backbone}" if variant else f"{algorithm}@{backbone}"
