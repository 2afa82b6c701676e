"""A published table as one archive that can be deposited for a DOI; the same table, the same bytes.

Beside the table's files and evidence there are the licences, `CITATION.cff` (Citation File Format
1.2.0), and `.zenodo.json`, which Zenodo reads as the metadata of a deposit.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from html import escape

from metabench.errors import EvidenceError, unknown_name
from metabench.publishing.archive import zip_bytes
from metabench.publishing.datasheet import CROISSANT, DATASHEET
from metabench.publishing.evidence import CELLS, QUERIES, REPRODUCED
from metabench.publishing.facts import CREATOR, LICENCE, LICENCE_LINK, DataFacts, TableFacts
from metabench.publishing.files import Files
from metabench.publishing.history import ENDING as HISTORY
from metabench.publishing.published import PublishedSource, stem_of, suites_in, table_name
from metabench.publishing.texts import Safe, filled, json_text
from metabench.publishing.verify.episodes import DataHere
from metabench.rendering import cell, plain
from metabench.store.files import json_bytes

KEYWORDS = ("few-shot learning", "meta-learning", "benchmark")


def deposit(files: Files, suite: str, here: DataHere, creators: Sequence[str] = ()) -> bytes:
    """The archive of a suite's table.

    Args:
        files: a folder of published tables.
        here: data sets of this machine, for their licences.
        creators: who is named as such; none: the developers of metabench.

    Raises:
        UnknownNameError: there is no such table.
        EvidenceError: something of it is missing, or isn't what it says.
    """
    if suite not in (known := suites_in(files)):
        raise unknown_name("published table", suite, known)
    source = PublishedSource.read(files, [suite])
    rows = source.rows(suite)
    facts = TableFacts.of(source, source.tables[suite], rows, here)
    made = {name: files.read(name) for name in _names(files, source, suite)}
    named = [plain(name) for name in creators] or [CREATOR]
    texts = {
        "LICENSE": _licences(facts),
        "CITATION.cff": _citation(facts, named),
    }
    made |= {name: text.encode() for name, text in texts.items()}
    return zip_bytes({**made, ".zenodo.json": json_bytes(_zenodo(facts, named))})


def _names(files: Files, source: PublishedSource, suite: str) -> list[str]:
    """The table's files and those of its evidence."""
    stem, there = stem_of(suite), set(files.names())
    found = [table_name(suite), f"{stem}.csv", f"{stem}.md", stem + DATASHEET, stem + CROISSANT]
    if missing := [name for name in found if name not in there]:
        raise EvidenceError(
            f"{missing[0]} of suite {suite!r} is missing", "publish the suite again"
        )
    found += [name for name in (stem + HISTORY,) if name in there]
    for key in source.tables[suite].keys:
        cell_evidence = source.proofs[key].cell
        found += [f"{CELLS}/{key}.json", f"{CELLS}/{key}.parquet"]
        found += [name for name in (f"{REPRODUCED}/{key}.json",) if name in there]
        asked = filter(None, (cell_evidence.queries, cell_evidence.disjoint_queries))
        found += [f"{QUERIES}/{digest}.parquet" for digest in asked]
    return sorted(set(found))


def _title(facts: TableFacts) -> str:
    return f"metabench: published table of suite {plain(facts.suite)}"


def _licences(facts: TableFacts) -> str:
    own = importlib.metadata.files("metabench") or []
    text = next((file.read_text() for file in own if file.name == "LICENSE"), None)
    known = {"facts": facts, "licence": LICENCE, "link": LICENCE_LINK}
    return filled("LICENSE", {**known, "text": Safe(text.strip() if text else "")}, cell)


def _citation(facts: TableFacts, creators: Sequence[str]) -> str:
    known = {"facts": facts, "title": _title(facts), "creators": creators, "licence": LICENCE}
    return filled("CITATION.cff", {**known, "keywords": KEYWORDS}, json_text)


def _zenodo(facts: TableFacts, creators: Sequence[str]) -> dict[str, object]:
    metadata: dict[str, object] = {
        "title": _title(facts),
        "upload_type": "dataset",
        "access_right": "open",
        "license": LICENCE.lower(),
        "version": facts.version,
        "creators": [{"name": name} for name in creators],
        "keywords": list(KEYWORDS),
        "language": "eng",
        "description": (
            f"<p>Few-shot learning algorithms on the same episodes: {len(facts.rows)} rows of"
            f" {len(facts.cells)} training runs, with the predictions that every number follows"
            f" from. The datasheet says how it was made and what it does not say.</p>"
        ),
        "references": [_reference(data) for data in facts.data if data.reference],
        "notes": "<p>" + escape("; ".join(map(_source, facts.data))) + "</p>",
    }
    return metadata | ({"publication_date": facts.day} if facts.day else {})


def _reference(data: DataFacts) -> str:
    return plain(f"{data.name}: {data.reference}")


def _source(data: DataFacts) -> str:
    return plain(f"made with data set {data.name}, licence {data.licence or 'not known'}")
