"""What stands beside a table: the digests of its Croissant metadata, and what was run again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

from metabench.errors import EvidenceError
from metabench.publishing.evidence import REPRODUCED
from metabench.publishing.files import Files, parts_of, read_json
from metabench.publishing.history import ENDING as HISTORY
from metabench.publishing.history import History
from metabench.publishing.reproduction import Reproduction
from metabench.publishing.verify.reading import Read
from metabench.publishing.verify.report import CannotCheckError, Report, require

CROISSANT = ".croissant.json"


def check_attached(read: Read, report: Report) -> None:
    """Findings on metadata and reproductions."""
    for name in read.files.names():
        if "/" not in name and name.endswith(CROISSANT):
            report.check("metadata", name, partial(_croissant, read.files, name))
        elif "/" not in name and name.endswith(HISTORY):
            suite = unquote(name.removesuffix(HISTORY))
            report.check("history", name, partial(History.read, read.files, suite))
        elif name.startswith(f"{REPRODUCED}/"):
            report.check("run again", name, partial(_reproduction, read, name))


def _croissant(files: Files, name: str) -> None:
    """The files that it lists are those that are there."""
    value = read_json(files, name)
    listed = list(_file_objects(value))
    require(bool(listed), "it lists no file")
    there = set(files.names())
    for entry in listed:
        address, expected = entry.get("contentUrl"), entry.get("sha256")
        if not isinstance(expected, str) or not isinstance(address, str):
            raise EvidenceError("it lists a file without contentUrl and sha256")
        known = next((n for n in (address, unquote(address)) if n in there), None)
        if known is None:
            raise EvidenceError(f"{address} isn't there")
        parts_of(known)
        own = hashlib.sha256(files.read(known)).hexdigest()
        require(own == expected, f"{known} has another sha256 than it says")


def _file_objects(value: Any) -> Iterator[dict[str, Any]]:
    distribution = value.get("distribution") if isinstance(value, dict) else None
    for entry in distribution if isinstance(distribution, list) else []:
        if isinstance(entry, dict) and entry.get("@type") in ("cr:FileObject", "sc:FileObject"):
            yield entry


def _reproduction(read: Read, name: str) -> None:
    key = name.removeprefix(f"{REPRODUCED}/").removesuffix(".json")
    if key not in read.proofs:
        raise CannotCheckError("the evidence of its cell could not be read")
    found = Reproduction.read(read.files, name, read.proofs[key].record)
    same = found.predictions == found.published
    require(same == (found.agreement == 1) or not same, "it agrees, and has other predictions")
    require(not same or found.difference == 0, "it has the same predictions, and another score")
