"""The table as people read it: a section for what may be compared, and the columns that tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from metabench.leaderboard.ranking import ranking_note
from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row

# fmt: off
READABLE = [
    "rank", "algorithm", "variant", "backbone", "score", "ci95", "seed_std", "disjoint_score",
    "ci95_items", "ci95_classes", "worst_class", "worst_episodes", "ece", "nll", "seeds",
    "adapt_ms", "predict_ms", "train_s", "budget", "device", "recipe_digest", "code_version",
    "status", "trust",
]
# fmt: on
LEGEND = (
    "rank: 1 + the rows of the table that are significantly better, over training seeds and"
    " episodes, corrected for all pairs (Holm). score: mean over test episodes and seeds. ci95:"
    " half-width of its 95% interval over episodes of these classes and items; it says nothing of"
    " other training runs. seed_std: spread over training seeds. disjoint_score: mean over"
    " episodes that share no item; around it ci95_items and ci95_classes, half-widths of the 95%"
    " intervals for new items of these classes, and for new classes of their population."
    " worst_class: lowest recall of a class. worst_episodes: mean of the worst 5% of episodes."
    " ece, nll: calibration error and negative log-likelihood, where there are probabilities."
    " adapt_ms, predict_ms: one episode; train_s: one training run, shared phases included. trust:"
    " self-reported, recomputed (it follows from its predictions), or reproduced (run again, with"
    " the same predictions)."
)


@dataclass(frozen=True)
class Section:
    """Rows that may be compared: one data set, protocol and inference mode.

    Attributes:
        title: such as `quickdraw, 5w1s15q, inductive`.
        facts: what they have in common.
        note: what has to be known before a row is believed; may be empty.
        columns: those of `READABLE` that tell something here.
        rows: by `columns`.
    """

    title: str
    facts: str
    note: str
    columns: list[str]
    rows: list[Row]


def sections(rows: Sequence[TableRow]) -> list[Section]:
    """The sections of a table whose rows are in order."""
    return [_section(list(group)) for _, group in groupby(rows, key=lambda row: row.group)]


def _section(rows: Sequence[TableRow]) -> Section:
    first, dicts = rows[0], [row.to_dict() for row in rows]
    devices = sorted({str(d["device"]) for d in dicts if d["device"]})
    facts = [f"protocol {dicts[0]['protocol_digest']}"]
    if first.inference:
        apart = next((f", {d['disjoint']} disjoint ones" for d in dicts if d["disjoint"]), "")
        facts.insert(0, f"{first.labels.metric} over {dicts[0]['episodes']} test episodes{apart}")
        facts.append(f"data {dicts[0]['dataset_digest']}")
    if len(devices) == 1:
        facts.append(f"on {devices[0]}")
    labels = first.labels
    return Section(
        title=f"{labels.dataset}, {labels.protocol}, {first.inference or 'no result'}",
        facts=", ".join(facts),
        note=_note(rows),
        columns=_columns(rows, dicts, len(devices)),
        rows=[{**d, "status": status_text(row)} for row, d in zip(rows, dicts, strict=True)],
    )


def status_text(row: TableRow) -> str:
    """`ok`, or what is wrong with how many of its training runs: `missing (2 of 3)`."""
    if row.status == "ok":
        return "ok"
    bad = sum(member.status != "ok" for member in row.members)
    return f"{row.status} ({bad} of {len(row.members)})"


def _note(rows: Sequence[TableRow]) -> str:
    parts = [ranking_note(rows)]
    if any(row.status != "ok" for row in rows):
        parts.append("A row of which a training run failed or is missing has no score.")
    return " ".join(filter(None, parts))


def _columns(rows: Sequence[TableRow], dicts: Sequence[Row], devices: int) -> list[str]:
    """Leave out what is empty or the same everywhere; tell apart what has the same name."""
    names = {(r.labels.algorithm, r.labels.variant, r.labels.backbone) for r in rows}
    hidden = {column for column in READABLE if all(d[column] in (None, "") for d in dicts)}
    if devices < 2:
        hidden.add("device")
    if len(names) == len(rows):
        hidden |= {"recipe_digest", "code_version"}
    if all(row.status == "ok" for row in rows):
        hidden.add("status")
    return [column for column in READABLE if column not in hidden]
