"""The datasheet of a published table, and its Croissant metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metabench.leaderboard.rows import COLUMNS, TableRow
from metabench.publishing.columns import meaning
from metabench.publishing.croissant import croissant
from metabench.publishing.evidence import Proof
from metabench.publishing.facts import CREATOR, LICENCE, DataFacts, TableFacts
from metabench.publishing.files import Files, read_json
from metabench.publishing.packing import CONFIDENCE, EXCESS, SHIFT
from metabench.publishing.published import PublishedTable, stem_of
from metabench.publishing.reproduction import ELSEWHERE
from metabench.publishing.texts import Safe, filled
from metabench.publishing.verify.attached import check_metadata
from metabench.publishing.verify.numbers import check_numbers
from metabench.publishing.verify.reading import Read
from metabench.publishing.verify.report import Report, require
from metabench.rendering import markdown_cell
from metabench.stats.intervals import FEWEST_SEEDS
from metabench.store.files import json_bytes

DATASHEET, CROISSANT = ".datasheet.md", ".croissant.json"


def described(files: Files, facts: TableFacts) -> dict[str, bytes]:
    """Datasheet and metadata of a table whose other files are there, by name."""
    stem = stem_of(facts.suite)
    sheet = {stem + DATASHEET: datasheet(facts).encode()}
    return sheet | {stem + CROISSANT: json_bytes(croissant(files, facts, sheet))}


def still_true(
    files: Files, table: PublishedTable, facts: TableFacts, proofs: Mapping[str, Proof]
) -> bool:
    """Whether all that is published of a table says what its evidence does.

    Its numbers may differ in what two machines compute otherwise, and its datasheet may know of
    data that isn't on this one.
    """
    report = Report(files.place)
    check_numbers(Read(files, {table.suite: table}, dict(proofs)), report)
    name = stem_of(table.suite) + CROISSANT
    report.check("metadata", name, lambda: check_metadata(files, name))
    report.check("version", name, lambda: require(_version(files, name) == facts.version, "old"))
    return all(finding.state == "holds" for finding in report.findings)


def _version(files: Files, name: str) -> object:
    return read_json(files, name).get("version")


def datasheet(facts: TableFacts) -> str:
    """The datasheet: what was measured, on what data, how, and how far it's to be believed."""
    return filled(
        "datasheet.md",
        {
            "facts": facts,
            "stem": Safe(stem_of(facts.suite)),
            "creator": CREATOR,
            "licence": LICENCE,
            "few": [row for row in facts.rows if len(row.members) < FEWEST_SEEDS],
            "fewest_seeds": FEWEST_SEEDS,
            "elsewhere": str(ELSEWHERE),
            "data": [(data, _card(data)) for data in facts.data],
            "columns": [(column, meaning(column)) for column in COLUMNS],
            "shift": SHIFT,
            "confidence": CONFIDENCE,
            "excess": EXCESS,
            "trusts": _trusts(facts.rows),
        },
    )


def _card(data: DataFacts) -> Safe:
    """A data set's card as a quotation, with its lines and without anybody's markup."""
    return Safe("\n".join(f"> {markdown_cell(line)}".rstrip() for line in data.card.splitlines()))


def _trusts(rows: Sequence[TableRow]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[str(row.trust)] = found.get(str(row.trust), 0) + 1
    return dict(sorted(found.items()))
