"""Croissant 1.0 metadata of a published table: its files with their digests, and its columns.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from metabench.leaderboard.rows import COLUMNS
from metabench.publishing.columns import kinds, meaning
from metabench.publishing.evidence import CELLS, QUERIES, REPRODUCED
from metabench.publishing.facts import CREATOR, LICENCE_LINK, TableFacts
from metabench.publishing.files import Files
from metabench.publishing.published import stem_of
from metabench.rendering import plain

_CR = "cr:"
_TERMS = (
    *("citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source"),
    *("subField", "transform", "equivalentProperty"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: _CR + term for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_FORMATS = {
    ".csv": ("text/csv", "the table: all columns of all rows, rounded to 4 decimals"),
    ".json": ("application/json", "the table for machines: which cells stand behind each row"),
    ".md": ("text/markdown", "the table for people, and how each row is run again"),
    ".datasheet.md": ("text/markdown", "what was measured, on what data, and how it was checked"),
    ".history.json": ("application/json", "rows that were replaced, and by what"),
}
_SETS = (
    ("records", f"{CELLS}/*.json", "application/json", "a cell's record, on what it ran, times"),
    ("predictions", f"{CELLS}/*.parquet", "application/x-parquet", "a cell's predictions"),
    ("queries", f"{QUERIES}/*.parquet", "application/x-parquet", "what was asked"),
    ("reproductions", f"{REPRODUCED}/*.json", "application/json", "what was run again"),
)


def croissant(files: Files, facts: TableFacts, new: Mapping[str, bytes]) -> dict[str, Any]:
    """The JSON-LD of a table whose files are there, or are `new`."""
    name = plain(facts.suite)
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": (
            f"Few-shot learning algorithms on the same episodes: suite {name} of metabench,"
            f" {len(facts.rows)} rows of {len(facts.cells)} training runs, with their predictions."
        ),
        "license": LICENCE_LINK,
        "creator": {"@type": "sc:Organization", "name": CREATOR},
        "citeAs": f"{CREATOR}. metabench suite {name}, published table, version {facts.version}.",
        "version": facts.version,
        "isBasedOn": [_based_on(data.name, data.licence, data.reference) for data in facts.data],
        "distribution": [*_file_objects(files, facts, new), *_file_sets(files)],
        "recordSet": [_records(facts)],
    }
    # Not the day of publishing: the same evidence gives the same bytes.
    return found | ({"datePublished": facts.day} if facts.day else {})


def _based_on(name: str, licence: str, reference: str) -> dict[str, str]:
    known = {"name": name, "license": licence, "citation": reference}
    return {"@type": "sc:Dataset"} | {k: plain(v) for k, v in known.items() if v}


def _file_objects(
    files: Files, facts: TableFacts, new: Mapping[str, bytes]
) -> list[dict[str, Any]]:
    stem, there = stem_of(facts.suite), {*files.names(), *new}
    found = []
    for ending, (kind, text) in _FORMATS.items():
        name = stem + ending
        if name in there:
            data = new[name] if name in new else files.read(name)
            found.append(
                {
                    "@type": "cr:FileObject",
                    "@id": name,
                    "name": name,
                    "description": text,
                    "contentUrl": quote(name),
                    "contentSize": f"{len(data)} B",
                    "encodingFormat": kind,
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    return found


def _file_sets(files: Files) -> list[dict[str, Any]]:
    folders = {name.rpartition("/")[0] for name in files.names()}
    return [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": text,
            "encodingFormat": kind,
            "includes": pattern,
        }
        for name, pattern, kind, text in _SETS
        if pattern.rpartition("/")[0] in folders
    ]


def _records(facts: TableFacts) -> dict[str, Any]:
    """The rows, read from the CSV."""
    csv = f"{stem_of(facts.suite)}.csv"
    of = kinds([row.to_dict() for row in facts.rows], COLUMNS)
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "a row a data set, protocol, algorithm, variant and backbone",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"rows/{column}",
                "name": column,
                "description": meaning(column),
                "dataType": of[column],
                "source": {"fileObject": {"@id": csv}, "extract": {"column": column}},
            }
            for column in COLUMNS
        ],
    }
