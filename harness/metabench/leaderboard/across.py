"""The rows of a table over all of its data sets, where these are six or more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from string import ascii_lowercase

from metabench.leaderboard.rows import TableRow
from metabench.leaderboard.sections import Section
from metabench.rendering import Row
from metabench.stats.across import FEWEST_DATASETS, Across, across_datasets
from metabench.stats.differences import ALPHA

MODES = ("inductive", "transductive")
Method = tuple[str, str, str]
"""Algorithm, variant and backbone."""
Place = tuple[str, str]
"""Data set and protocol."""


@dataclass(frozen=True)
class Overall:
    """Methods over data sets.

    Attributes:
        protocols: over which a method's score on a data set is the mean.
        seeds: the fewest and the most training runs behind a score.
        left_out: methods without one score everywhere, sorted.
    """

    found: Across
    protocols: tuple[str, ...]
    seeds: tuple[int, int]
    left_out: tuple[str, ...]


def across(rows: Sequence[TableRow], inference: str) -> Overall | None:
    """The methods of one inference mode over all data sets; None where these are too few.

    What counts are data sets and protocols under which more than half of the methods have a score,
    so that what few have tried doesn't take the others away, and of the protocols those that all
    these data sets have. Left out are methods that lack a score somewhere, and those with two in
    one place, of two versions.
    """
    by_method: dict[Method, dict[Place, list[TableRow]]] = {}
    contents: dict[Place, set[str]] = {}
    for row in rows:
        if row.inference == inference and row.numbers is not None:
            place = row.labels.dataset, row.labels.protocol
            by_method.setdefault(_method(row), {}).setdefault(place, []).append(row)
            contents.setdefault(place, set()).add(row.dataset_digest)
    counts = Counter(place for places in by_method.values() for place in places)
    usual = {place for place, count in counts.items() if 2 * count > len(by_method)}
    datasets = sorted({dataset for dataset, _ in usual})
    protocols = sorted({p for _, p in usual if all((d, p) in usual for d in datasets)})
    # Two labels for one content, such as two class splits of it, are no two data sets.
    apart = set[str]().union(*(contents[place] for place in usual))
    if not protocols or len(datasets) < FEWEST_DATASETS or len(datasets) != len(apart):
        return None
    asked = [(d, p) for d in datasets for p in protocols]
    whole = {
        method: {place: places[place][0] for place in asked}
        for method, places in sorted(by_method.items())
        if all(len(places.get(place, ())) == 1 for place in asked)
    }
    if len(whole) < 2:
        return None
    table = [
        [fmean(_score(places[d, p]) for p in protocols) for places in whole.values()]
        for d in datasets
    ]
    seeds = [len(row.members) for places in whole.values() for row in places.values()]
    return Overall(
        across_datasets(table, datasets, list(map(_name, whole))),
        tuple(protocols),
        (min(seeds), max(seeds)),
        tuple(_name(method) for method in sorted(by_method) if method not in whole),
    )


def across_sections(rows: Sequence[TableRow]) -> list[Section]:
    """A section for each inference mode."""
    return [_section(mode, found) for mode in MODES if (found := across(rows, mode)) is not None]


def _section(mode: str, overall: Overall) -> Section:
    found = overall.found
    tied = [
        " ".join(letters(g) for g, group in enumerate(found.groups) if place in group)
        for place in range(len(found.algorithms))
    ]
    rows: list[Row] = [
        {"method": name, "mean_rank": rank, "tied": letter}
        for name, rank, letter in zip(found.algorithms, found.mean_ranks, tied, strict=True)
    ]
    fewest, most = overall.seeds
    runs = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return Section(
        title=f"all {len(found.datasets)} data sets, {mode}",
        facts=f"mean ranks over {', '.join(found.datasets)}, by the mean score of {runs}"
        f" training runs under {', '.join(overall.protocols)}",
        note=" ".join(filter(None, [*_tests(found), _left_out(overall)])),
        columns=["method", "mean_rank", "tied"],
        rows=rows,
    )


def _tests(found: Across) -> list[str]:
    """What the tests came to, a sentence each."""
    alike = found.friedman_p is not None and found.friedman_p >= ALPHA
    told = [] if found.friedman_p is None else [f"Friedman's test: p = {found.friedman_p:.2g}."]
    if alike:
        return [*told, "So nobody is told apart."]
    told.append("Methods that share a letter can't be told apart (Wilcoxon, Holm).")
    if found.least_p >= ALPHA:
        told.append("With so few data sets no pair can be.")
    return told


def _left_out(overall: Overall) -> str:
    if not overall.left_out:
        return ""
    return f"Left out, with a score missing or two in one place: {', '.join(overall.left_out)}."


def letters(number: int) -> str:
    """A name for a group: a to z, then aa, ab and so on."""
    more, last = divmod(number, len(ascii_lowercase))
    return (letters(more - 1) if more else "") + ascii_lowercase[last]


def _score(row: TableRow) -> float:
    assert row.score is not None  # only such rows are taken
    return row.score


def _method(row: TableRow) -> Method:
    return row.labels.algorithm, row.labels.variant, row.labels.backbone


def _name(method: Method) -> str:
    algorithm, variant, backbone = method
    return f"{algorithm}/{variant}@{backbone}" if variant else f"{algorithm}@{backbone}"
