"""The page of `metabench compare`, and the same as JSON and CSV."""

from __future__ import annotations

from metabench.cli.compare_changes import add_changes
from metabench.cli.compare_rows import add_rows
from metabench.cli.compare_words import Kind, inference_of, name_of
from metabench.cli.page import Page
from metabench.leaderboard.compare import Comparison, Comparisons
from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row


def comparison_columns(kind: Kind) -> list[str]:
    """The columns of the CSV, whether or not there is a comparison."""
    one, other = kind.first, kind.second
    # fmt: off
    return [
        "dataset", "protocol", "inference", "metric", one, other,
        f"{one}_score", f"{other}_score", f"{one}_seeds", f"{other}_seeds",
        "verdict", "difference", "low", "high", "p", "p_holm", "corrected_over",
        "seeds", "episodes", "basis", "more_seeds", "more_episodes", "note", "changes",
        f"{other}_ran", "earlier_versions",
    ]
    # fmt: on


def comparison_rows(kind: Kind, found: Comparisons) -> list[Row]:
    """A flat row a comparison, as the CSV has it: p with 4 significant digits."""
    rows: list[Row] = []
    for pair in found.found:
        flat = _flat(kind, pair)
        exact = {name: f"{p:.4g}" for name in ("p", "p_holm") if (p := flat[name]) is not None}
        rows.append(flat | exact | {"changes": "; ".join(pair.changes)})
    return rows


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
        add_rows(page, found)
    else:
        add_changes(page, kind, found)
    return page


def _title(kind: Kind, suite: str) -> str:
    if kind.name == "versions":
        return f"suite {suite} in {kind.places[0]}: its rows now (new) and under earlier code (old)"
    if kind.name == "folders":
        return f"suite {suite}: {kind.places[1]} (old) and {kind.places[0]} (new)"
    return f"suite {suite}: {kind.places[0]} and {kind.places[1]}"


def _flat(kind: Kind, pair: Comparison) -> dict[str, object]:
    labels, found = pair.first.labels, pair.found
    judged = found if pair.family else None  # of the same labels there is nothing to judge
    values = (
        *(labels.dataset, labels.protocol, inference_of(kind, pair), labels.metric),
        *(name_of(pair.first), name_of(pair.second)),
        *(pair.scores or (None, None)),
        *pair.seeds,
        pair.verdict,
        found.difference if found else None,
        *((judged.low, judged.high, judged.p, judged.p_holm) if judged else (None,) * 4),
        pair.family or None,
        *((found.seeds, found.episodes) if found else (None, None)),
        judged.basis if judged else None,
        *((pair.needed.seeds, pair.needed.episodes) if pair.needed else (None, None)),
        pair.note,
        list(pair.changes),
        *(pair.earlier or (None, None)),
    )
    return dict(zip(comparison_columns(kind), values, strict=True))


def _nested(kind: Kind, pair: Comparison) -> dict[str, object]:
    """As `_flat`, with both rows of the table whole."""
    return _flat(kind, pair) | {
        kind.first: pair.first.to_dict(),
        kind.second: pair.second.to_dict(),
        "df": pair.found.df if pair.found and pair.family else None,
        "needed": pair.needed._asdict() if pair.needed else None,
    }


def _only(row: TableRow) -> dict[str, object]:
    labels = row.labels
    return {"row": name_of(row), "dataset": labels.dataset, "protocol": labels.protocol}
