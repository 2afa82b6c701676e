"""What `metabench compare` says of two rows of a table."""

from __future__ import annotations

from metabench.cli.compare_words import (
    ROWS,
    inference_of,
    interval,
    name_of,
    p_text,
    place_of,
    verdict_of,
)
from metabench.cli.page import Page, Table, lines
from metabench.leaderboard.compare import Comparison, Comparisons
from metabench.leaderboard.names import RowName
from metabench.stats.differences import ALPHA, Difference
from metabench.stats.samples import MOST_EPISODES, MOST_SEEDS, POWER, Needed

BASES = {
    "pooled seeds": "spread of training runs pooled over the table's rows",
    "own seeds": "spread of training runs from these two rows alone",
    "no spread of seeds": "neither row depends on its training seed",
}
_SUMMARY = ("dataset", "protocol", "inference", "difference", "interval", "p_holm", "verdict")


def add_rows(page: Page, found: Comparisons) -> None:
    """Add a summary of several tables, and what each of them says."""
    one, other = _two_names(found.found[0])
    page.add("", lines([f"Differences are {one} - {other}."]))
    if len(found.found) > 1:
        page.add("", Table([_summary(pair) for pair in found.found], _SUMMARY))
    for pair in found.found:
        page.add(place_of(ROWS, pair), lines(sentences(pair)))
    for row in (*found.only_first, *found.only_second):
        labels = row.labels
        page.add(
            f"{labels.dataset}, {labels.protocol}",
            lines([f"Only {name_of(row)} stands in this table."]),
        )


def _summary(pair: Comparison) -> dict[str, object]:
    found = pair.found
    return {
        "dataset": pair.first.labels.dataset,
        "protocol": pair.first.labels.protocol,
        "inference": inference_of(ROWS, pair),
        "difference": found.difference if found else None,
        "interval": interval(found) if found else None,
        "p_holm": p_text(found.p_holm) if found else None,
        "verdict": verdict_of(pair),
    }


def sentences(pair: Comparison) -> list[str]:
    """What two rows of a table say of each other, a line each."""
    one, other = _two_names(pair)
    found, scores = pair.found, pair.scores
    if found is None or scores is None:
        return [f"Not compared. {pair.note}"]
    told = [
        f"{one} {scores[0]:.4f}, {other} {scores[1]:.4f}.",
        _finding(pair, one, other, found),
        _significance(pair, found),
        *_sample(pair, found),
    ]
    return told + (_needed(pair.needed, found, pair.family) if pair.needed else [])


def _finding(pair: Comparison, one: str, other: str, found: Difference) -> str:
    where = "On these checkpoints " if pair.of_checkpoints else ""
    if pair.verdict == "not told apart":
        told = f"{one} and {other} can't be told apart"
    elif pair.verdict == "better":
        told = f"{one} is better than {other}"
    else:
        told = f"{one} is worse than {other}"
    return f"{where}{told}: {found.difference:.4f} {interval(found)}."


def _significance(pair: Comparison, found: Difference) -> str:
    p = _equation(found.p)
    if pair.note:
        return f"p {p}; {pair.note}."
    if pair.family == 1:
        return f"p {p}; the table has no other such pair to correct for."
    return (
        f"p {p}; corrected by Holm for all {pair.family} pairs {_family(pair)}:"
        f" p {_equation(found.p_holm)}."
    )


def _family(pair: Comparison) -> str:
    """Which pairs these are: a table with pairs of few seeds in common has two kinds."""
    if not pair.apart:
        return "of the table"
    few = "under 3 seeds" if pair.of_checkpoints else "3 or more seeds"
    return f"of the table with {few} in common"


def _sample(pair: Comparison, found: Difference) -> list[str]:
    told = f"{found.seeds} {'seed' if found.seeds == 1 else 'seeds'} in common"
    if pair.seeds != (found.seeds, found.seeds):
        told += f", of {pair.seeds[0]} and {pair.seeds[1]}; {found.episodes} episodes"
    else:
        told += f", {found.episodes} episodes"
    if not pair.of_checkpoints:
        return [f"{told}; {BASES[found.basis]}."]
    # With so few in common, scores and difference are over all that each has.
    return [f"{told}; over all runs of each.", "Under 3 seeds in common nothing is said of others."]


def _needed(found: Needed, pair: Difference, family: int) -> list[str]:
    """What it would take, if the true difference were the one observed."""
    level = f"p < {ALPHA:g} / {family}, Holm's strictest" if family > 1 else f"p < {ALPHA:g}"
    told = [f"To tell such a difference with {POWER:.0%} power ({level}):"]
    if found.seeds is not None:
        told.append(f"- more seeds alone: {found.seeds} more in common;")
    elif found.seeds_floor is not None:
        told.append(
            f"- more seeds alone: not even {MOST_SEEDS:,} (they would tell"
            f" {found.seeds_floor:.4f});"
        )
    else:
        told.append("- more seeds: fewer than 3 in common don't say how many; run the same 3;")
    if found.episodes is not None:
        told.append(f"- more episodes alone: {found.episodes:,} more.")
    else:
        told.append(
            f"- more episodes alone: not even {MOST_EPISODES:,} (they would tell"
            f" {found.episodes_floor:.4f})."
        )
    if pair.basis in ("pooled seeds", "own seeds"):
        told.append("A plan, not a promise: few seeds say little of their own spread.")
    return told


def _two_names(pair: Comparison) -> tuple[str, str]:
    """As short as they can be told apart by."""
    one, other = RowName.of(pair.first), RowName.of(pair.second)
    if one.backbone == other.backbone:
        return one.short, other.short
    return str(one), str(other)


def _equation(p: float) -> str:
    return f"= {p:.4f}" if p >= 0.00005 else "< 0.0001"
