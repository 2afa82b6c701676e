"""The table as people read it: a section for what may be compared, and the columns that tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from metabench.leaderboard.rows import TableRow
from metabench.rendering import Row
from metabench.stats.intervals import FEWEST_SEEDS

# fmt: off
READABLE = [
    "rank", "algorithm", "variant", "backbone", "score", "ci95", "seed_std", "seeds", "adapt_ms",
    "predict_ms", "train_s", "budget", "device", "recipe_digest", "code_version", "status",
]
# fmt: on
LEGEND = (
    "score: mean over test episodes and seeds; ci95: half-width of its 95% interval over episodes,"
    " which says nothing about other training runs; seed_std: spread over training seeds;"
    " adapt_ms, predict_ms: one episode; train_s: one training run, shared phases included."
)
FEW_SEEDS = "1 or 2 seeds: these checkpoints only, nobody is ranked."
SOME_FEW_SEEDS = "Rows of 1 or 2 seeds speak of these checkpoints only, and are not ranked."


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
        facts.insert(0, f"{first.labels.metric} over {dicts[0]['episodes']} test episodes")
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
    few = [len(row.members) < FEWEST_SEEDS for row in rows if row.summary]
    seeds = FEW_SEEDS if few and all(few) else SOME_FEW_SEEDS if any(few) else ""
    parts = [seeds]
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
