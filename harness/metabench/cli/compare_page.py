"""What `metabench compare` says: sentences and tables on pairs of rows, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from metabench.cli.page import Page, Table, Text
from metabench.leaderboard.compare import CHECKPOINTS, Comparison, Comparisons, RowName
from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row
from metabench.stats.differences import ALPHA, Difference
from metabench.stats.samples import POWER, Needed

BASES = {
    "pooled seeds": "spread of training runs pooled over the table's rows",
    "own seeds": "spread of training runs from these two rows alone",
    "no spread of seeds": "neither row depends on its training seed",
}
_SUMMARY = ("dataset", "protocol", "inference", "difference", "interval", "p_holm", "verdict")
_CHANGED = ("row", "verdict", "difference", "interval", "p_holm", "new", "old", "seeds")


class Kind(NamedTuple):
    """What is compared.

    Attributes:
        name: `rows`, `folders` or `versions`.
        first, second: what the two sides are called.
        places: what stands behind these names.
    """

    name: str
    first: str
    second: str
    places: tuple[str, str]


ROWS = Kind("rows", "a", "b", ("", ""))


def comparison_rows(kind: Kind, found: Comparisons) -> list[Row]:
    """A flat row a comparison, with everything; the columns of the CSV are its keys."""
    return [_flat(kind, pair) for pair in found.found]


def comparison_page(kind: Kind, suite: str, found: Comparisons) -> Page:
    """The page of a comparison."""
    data: dict[str, object] = {
        "suite": suite,
        "compared": kind.name,
        "direction": f"{kind.first} - {kind.second}",
        kind.first: kind.places[0],
        kind.second: kind.places[1],
        "comparisons": [_nested(kind, pair) for pair in found.found],
        f"only_{kind.first}": [_only(row) for row in found.only_first],
        f"only_{kind.second}": [_only(row) for row in found.only_second],
    }
    page = Page(_title(kind, suite), data)
    if kind.name == "rows":
        _add_rows(page, found)
    else:
        _add_changes(page, kind, found)
    return page


def _title(kind: Kind, suite: str) -> str:
    if kind.name == "versions":
        return f"suite {suite} in {kind.places[0]}: its rows now and under earlier code"
    return f"suite {suite}: {kind.places[0]} and {kind.places[1]}"


# Two rows.


def _add_rows(page: Page, found: Comparisons) -> None:
    one, other = _two_names(found.found[0])
    page.add("", Text(f"Differences are {one} - {other}."))
    if len(found.found) > 1:
        rows = [
            {
                "dataset": pair.first.labels.dataset,
                "protocol": pair.first.labels.protocol,
                "inference": pair.inference,
                "difference": pair.found.difference if pair.found else None,
                "interval": _interval(pair.found) if pair.found else None,
                "p_holm": p_text(pair.found.p_holm) if pair.found else None,
                "verdict": _verdict(pair),
            }
            for pair in found.found
        ]
        page.add("", Table(rows, _SUMMARY))
    for pair in found.found:
        page.add(_place(pair), Text("\n".join(sentences(pair))))
    for row in (*found.only_first, *found.only_second):
        labels = row.labels
        page.add(
            f"{labels.dataset}, {labels.protocol}",
            Text(f"Only {RowName.of(row)} stands in this table."),
        )


def sentences(pair: Comparison) -> list[str]:
    """What two rows of a table say of each other, a line each."""
    one, other = _two_names(pair)
    found = pair.found
    if found is None:
        return [f"Not compared. {pair.note}"]
    lines = [
        f"{one} {pair.first.score:.4f}, {other} {pair.second.score:.4f}.",
        _finding(pair, one, other, found),
        _significance(pair, found),
        _sample(pair, found),
    ]
    return lines + (_needed(pair.needed, found, pair.family) if pair.needed else [])


def _finding(pair: Comparison, one: str, other: str, found: Difference) -> str:
    where = "On these checkpoints " if found.basis == CHECKPOINTS else ""
    if pair.verdict == "not told apart":
        told = f"{one} and {other} can't be told apart"
    elif pair.verdict == "better":
        told = f"{one} is better than {other}"
    else:
        told = f"{one} is worse than {other}"
    return f"{where}{told}: {found.difference:.4f} {_interval(found)}."


def _significance(pair: Comparison, found: Difference) -> str:
    p = _equation(found.p)
    if pair.note:
        return f"p {p}; {pair.note}."
    if pair.family == 1:
        return f"p {p}; the table has no other such pair to correct for."
    such = "such " if found.basis == CHECKPOINTS else ""
    holm = _equation(found.p_holm)
    return f"p {p}; corrected by Holm for all {pair.family} {such}pairs of the table: p {holm}."


def _sample(pair: Comparison, found: Difference) -> str:
    if found.basis != CHECKPOINTS:
        seeds = f"{found.seeds} seeds in common, {found.episodes} episodes"
        return f"{seeds}; {BASES[found.basis]}."
    runs = f"{len(pair.first.records)} and {len(pair.second.records)} training runs"
    why = "under 3 seeds in common say nothing of other training runs"
    return f"{runs}, {found.episodes} episodes; {why}."


def _needed(found: Needed, pair: Difference, family: int) -> list[str]:
    """What it would take, if the true difference were the one observed."""
    level = f"p < {ALPHA:g} / {family}, Holm's strictest" if family > 1 else f"p < {ALPHA:g}"
    lines = [f"To tell such a difference with {POWER:.0%} power ({level}):"]
    if found.seeds is not None:
        lines.append(f"- {found.seeds} more seeds of each;")
    elif found.seeds_floor is not None:
        lines.append(
            f"- no number of more seeds alone: they tell {found.seeds_floor:.4f} and more;"
        )
    else:
        lines.append("- how many seeds, nobody can say from fewer than 3;")
    if found.episodes is not None:
        lines.append(f"- or else {found.episodes} more episodes.")
    else:
        floor = f"they tell {found.episodes_floor:.4f} and more"
        lines.append(f"- or else no number of more episodes alone: {floor}.")
    if pair.basis in ("pooled seeds", "own seeds"):
        lines.append("A plan, not a promise: few seeds say little of their own spread.")
    return lines


def _two_names(pair: Comparison) -> tuple[str, str]:
    """As short as they can be told apart by."""
    one, other = RowName.of(pair.first), RowName.of(pair.second)
    if one.backbone == other.backbone:
        return one.short, other.short
    return str(one), str(other)


# One row and what it was.


def _add_changes(page: Page, kind: Kind, found: Comparisons) -> None:
    page.add("", Text("\n".join(_overview(kind, found))))
    compared = [pair for pair in found.found if pair.found is not None]
    changed = [pair for pair in compared if pair.verdict != "same predictions"]
    for title, pairs in groupby(changed, key=_place):
        page.add(title, Table([_changed(pair) for pair in pairs], _CHANGED))
    whys = [
        {"place": _place(pair), "row": _name(pair.first), "why": pair.note}
        for pair in found.found
        if pair.found is None
    ]
    page.add("not compared", Table(whys, ("place", "row", "why")))
    page.add("what changed", Table(_by_row(changed), ("row", "change", "where")))
    same = [pair for pair in compared if pair.verdict == "same predictions"]
    page.add("same predictions", Table(_by_row(same), ("row", "change", "where")))
    alone = "no earlier version" if kind.name == "versions" else f"only in {kind.places[0]}"
    page.add(alone, Text(_listed(found.only_first)))
    page.add(f"only in {kind.places[1]}", Text(_listed(found.only_second)))


def _overview(kind: Kind, found: Comparisons) -> list[str]:
    compared = [pair for pair in found.found if pair.found is not None]
    same = sum(pair.verdict == "same predictions" for pair in compared)
    worse, better = (sum(p.verdict == v for p in compared) for v in ("worse", "better"))
    lines = []
    if kind.name == "folders":
        lines = [f"new: {kind.places[0]}", f"old: {kind.places[1]}"]
    if not compared:
        return [*lines, "No row could be compared."]
    lines.append("Differences are new - old: above 0, the new one is better.")
    rows = "1 row" if len(compared) == 1 else f"{len(compared)} rows"
    lines.append(f"{rows} compared: {same} with the same predictions, {len(compared) - same} not.")
    if same < len(compared):
        lines.append(f"Of these, {better} significantly better and {worse} significantly worse.")
        if any(pair.found and pair.found.basis == CHECKPOINTS for pair in compared):
            lines.append("(checkpoints): under 3 seeds, nothing is said of other training runs.")
        lines.append("p is paired over seeds and episodes, corrected by Holm for rows that differ.")
    return lines


def _changed(pair: Comparison) -> Row:
    found = pair.found
    assert found is not None
    return {
        "row": _name(pair.first),
        "verdict": _verdict(pair),
        "difference": found.difference,
        "interval": _interval(found),
        "p_holm": p_text(found.p_holm),
        "new": pair.first.score,
        "old": pair.second.score,
        "seeds": found.seeds,
    }


def _by_row(pairs: Iterable[Comparison]) -> list[Row]:
    """Each row with what changed of it, and under which protocols."""
    where: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        labels, change = pair.first.labels, "; ".join(pair.changes) or "nothing"
        place = f"{labels.dataset} {labels.protocol}"
        where.setdefault((_name(pair.first), change), []).append(place)
    return [
        {"row": row, "change": change, "where": ", ".join(places)}
        for (row, change), places in where.items()
    ]


def _listed(rows: Sequence[TableRow]) -> str:
    """The names of rows, a line a data set and protocol."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(f"{row.labels.dataset}, {row.labels.protocol}", []).append(_name(row))
    return "\n".join(f"{place}: {', '.join(names)}" for place, names in lines.items())


# Both.


def _place(pair: Comparison) -> str:
    labels = pair.first.labels
    return ", ".join(filter(None, [labels.dataset, labels.protocol, pair.inference]))


def _name(row: TableRow) -> str:
    return str(RowName.of(row))


def _verdict(pair: Comparison) -> str:
    """With a word where it is about these checkpoints only."""
    few = pair.found is not None and pair.found.basis == CHECKPOINTS
    return f"{pair.verdict} (checkpoints)" if few else pair.verdict


def _interval(found: Difference) -> str:
    return f"[{found.low:.4f}, {found.high:.4f}]"


def p_text(p: float) -> str:
    """4 decimals; what would be 0.0000 is `<0.0001`."""
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def _equation(p: float) -> str:
    return f"= {p:.4f}" if p >= 0.00005 else "< 0.0001"


def _flat(kind: Kind, pair: Comparison) -> dict[str, object]:
    labels, found = pair.first.labels, pair.found
    return {
        "dataset": labels.dataset,
        "protocol": labels.protocol,
        "inference": pair.inference,
        "metric": labels.metric,
        kind.first: _name(pair.first),
        kind.second: _name(pair.second),
        f"{kind.first}_score": pair.first.score,
        f"{kind.second}_score": pair.second.score,
        "verdict": pair.verdict,
        "difference": found.difference if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "p": found.p if found else None,
        "p_holm": found.p_holm if found else None,
        "corrected_over": pair.family or None,
        "seeds": found.seeds if found else None,
        "episodes": found.episodes if found else None,
        "basis": found.basis if found else None,
        "more_seeds": pair.needed.seeds if pair.needed else None,
        "more_episodes": pair.needed.episodes if pair.needed else None,
        "note": pair.note,
        "changes": "; ".join(pair.changes),
    }


def _nested(kind: Kind, pair: Comparison) -> dict[str, object]:
    """As `_flat`, with both rows of the table whole."""
    flat = _flat(kind, pair)
    return flat | {
        kind.first: pair.first.to_dict(),
        kind.second: pair.second.to_dict(),
        "df": pair.found.df if pair.found else None,
        "needed": pair.needed._asdict() if pair.needed else None,
        "changes": list(pair.changes),
    }


def _only(row: TableRow) -> dict[str, object]:
    labels = row.labels
    return {"row": _name(row), "dataset": labels.dataset, "protocol": labels.protocol}
