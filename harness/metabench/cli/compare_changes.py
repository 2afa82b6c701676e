"""What `metabench compare` says of rows and what they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metabench.cli.compare_words import (
    Kind,
    interval,
    name_of,
    p_text,
    place_of,
    seeds_of,
    tally,
    telling,
    verdict_of,
)
from metabench.cli.page import Page, Table, lines
from metabench.leaderboard.compare import SAME, Comparison, Comparisons
from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row, plain

# fmt: off
_CHANGED = (
    "row", "verdict", "difference", "interval", "p_holm", "new", "old", "seeds", "note",
)
# fmt: on
_CHANGES = ("row", "change", "old_ran", "earlier_versions", "note", "where")


def add_changes(page: Page, kind: Kind, found: Comparisons) -> None:
    """Add an overview, what changed by how much, what stayed, and what couldn't be compared."""
    page.add("", lines(_overview(kind, found)))
    changed = [pair for pair in found.compared if pair.verdict not in SAME]
    sections: dict[str, list[Row]] = {}
    for pair in changed:
        sections.setdefault(place_of(kind, pair), []).append(_changed(pair))
    for title, rows in sections.items():
        page.add(title, Table(rows, telling(rows, _CHANGED)))
    whys = [
        {"place": place_of(kind, pair), "row": name_of(pair.first), "why": pair.note}
        for pair in found.found
        if pair.found is None
    ]
    page.add("not compared", Table(whys, ("place", "row", "why")))
    _add_by_row(page, "what changed", changed)
    for verdict in SAME:
        _add_same(page, verdict, [pair for pair in found.compared if pair.verdict == verdict])
    alone = "no earlier version" if kind.name == "versions" else f"only in {kind.places[0]}"
    page.add(alone, lines(_listed((row, name_of(row)) for row in found.only_first)))
    gone = lines(_listed((row, name_of(row)) for row in found.only_second))
    page.add(f"only in {kind.places[1]}", gone)


def _overview(kind: Kind, found: Comparisons) -> list[str]:
    compared = found.compared
    if not compared:
        return [f"No row could be compared ({tally(kind, found)})."]
    worse, better = (sum(p.verdict == v for p in compared) for v in ("worse", "better"))
    counts = {verdict: sum(p.verdict == verdict for p in compared) for verdict in SAME}
    other = len(compared) - sum(counts.values())
    told = ["Differences are new - old: above 0, the new one is better.", tally(kind, found) + "."]
    told += [f"{verdict}: {n}" for verdict, n in counts.items() if n]
    if other:
        told.append(
            f"other labels: {other}, {better} significantly better, {worse} significantly worse"
        )
        if any(pair.of_checkpoints and pair.family for pair in compared):
            told.append("(checkpoints): under 3 seeds, nothing is said of other training runs.")
        told.append("p is paired over seeds and episodes, corrected by Holm for rows that differ.")
    if any(_seeds_note(pair) for pair in compared):
        told.append("Seeds differ: only those that both have are compared, new and old are theirs.")
    return told


def _changed(pair: Comparison) -> Row:
    found, scores = pair.found, pair.scores
    assert found is not None
    assert scores is not None
    return {
        "row": name_of(pair.first),
        "verdict": verdict_of(pair),
        "difference": found.difference,
        "interval": interval(found),
        "p_holm": p_text(found.p_holm),
        "new": scores[0],
        "old": scores[1],
        "seeds": seeds_of(pair, found),
        "note": pair.note,
    }


def _add_same(page: Page, verdict: str, pairs: Sequence[Comparison]) -> None:
    """Names are enough where nothing is said of what changed."""
    silent = [pair for pair in pairs if not pair.changes and pair.earlier is None]
    named = []
    for pair in silent:
        note = _seeds_note(pair)
        named.append((pair.first, name_of(pair.first) + (f" ({note})" if note else "")))
    page.add(verdict, lines(_listed(named)))
    told = [pair for pair in pairs if pair not in silent]
    _add_by_row(page, f"{verdict}, though this changed" if silent else verdict, told)


def _add_by_row(page: Page, heading: str, pairs: Iterable[Comparison]) -> None:
    """Each row with what changed of it and from when it was, and under which protocols."""
    where: dict[tuple[object, ...], list[str]] = {}
    for pair in pairs:
        labels, earlier = pair.first.labels, pair.earlier
        same = pair.verdict in SAME
        ran = earlier.started[:16].replace("T", " ") if earlier else ""
        key = (
            name_of(pair.first),
            "; ".join(pair.changes),
            ran,
            earlier.versions if earlier else None,
            "; ".join(filter(None, [pair.note, _seeds_note(pair)])) if same else "",
        )
        where.setdefault(key, []).append(f"{labels.dataset} {labels.protocol}")
    rows = [
        dict(zip(_CHANGES, (*key, ", ".join(places)), strict=True)) for key, places in where.items()
    ]
    page.add(heading, Table(rows, telling(rows, _CHANGES)))


def _seeds_note(pair: Comparison) -> str:
    """Where a row has other seeds than it had; nothing where they are the same."""
    found = pair.found
    if found is None or pair.seeds == (found.seeds, found.seeds):
        return ""
    return f"seeds in common: {seeds_of(pair, found)}"


def _listed(named: Iterable[tuple[TableRow, str]]) -> list[str]:
    """The names of rows, a line a data set and protocol."""
    found: dict[str, list[str]] = {}
    for row, name in named:
        place = plain(f"{row.labels.dataset}, {row.labels.protocol}")
        found.setdefault(place, []).append(name)
    return [f"{place}: {', '.join(names)}" for place, names in found.items()]
