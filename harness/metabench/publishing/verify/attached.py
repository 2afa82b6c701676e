"""What stands beside a table: the digests of its Croissant metadata, and what was run again."""

from __future__ import annotations

import hashlib
import math
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
LISTED = (".csv", ".md", ".json", ".datasheet.md")
"""Of a table's files those that its metadata must hold the digests of."""
SLACK = 1e-9
"""By how much sums may differ that another machine made."""


def check_attached(read: Read, report: Report) -> None:
    """Findings on metadata and reproductions."""
    for name in read.files.names():
        if "/" not in name and name.endswith(CROISSANT):
            report.check("metadata", name, partial(check_metadata, read.files, name))
        elif "/" not in name and name.endswith(HISTORY):
            suite = unquote(name.removesuffix(HISTORY))
            report.check("history", name, partial(History.read, read.files, suite))
        elif name.startswith(f"{REPRODUCED}/"):
            report.check("run again", name, partial(_reproduction, read, name))


def check_metadata(files: Files, name: str) -> None:
    """The files that Croissant metadata list are those that are there; else EvidenceError."""
    value = read_json(files, name)
    listed = list(_file_objects(value))
    require(bool(listed), "it lists no file")
    there = set(files.names())
    left = {name.removesuffix(CROISSANT) + ending for ending in LISTED} & there
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
        left.discard(known)
    require(not left, f"it doesn't list {min(left, default='')}")


def _file_objects(value: Any) -> Iterator[dict[str, Any]]:
    distribution = value.get("distribution") if isinstance(value, dict) else None
    for entry in distribution if isinstance(distribution, list) else []:
        if isinstance(entry, dict) and entry.get("@type") in ("cr:FileObject", "sc:FileObject"):
            yield entry


def _reproduction(read: Read, name: str) -> None:
    key = name.removeprefix(f"{REPRODUCED}/").removesuffix(".json")
    if key not in read.proofs:
        raise CannotCheckError("the evidence of its cell could not be read")
    proof = read.proofs[key]
    found = Reproduction.read(read.files, name, proof)
    run = found.run
    require(bool(run.torch and run.device), "it doesn't say on what device and PyTorch it ran")
    require(
        run.torch.split(".")[:2] == found.torch.split("."),
        f"it ran on PyTorch {run.torch}, and says {found.torch}",
    )
    same, agree = found.predictions == found.published, found.agreement == 1
    require(agree or not same, "it has the same predictions, and they differ")
    # With probabilities, the same answers may be more or less sure.
    unsure = proof.episodes.surprise is not None
    require(same or not agree or unsure, "it has the same answers, and other predictions")
    metric = str(proof.record.identity.protocol.get("metric"))
    score = float(proof.episodes.scores(metric).mean())
    require(
        math.isclose(found.score - found.difference, score, rel_tol=0, abs_tol=SLACK),
        f"its score and difference make {found.score - found.difference}, published is {score}",
    )
    require(0 <= found.score <= 1, f"its score is {found.score}")
    moved = abs(found.difference)
    most = 1 - found.agreement
    require(
        moved <= most + SLACK,
        f"its score moved by {moved}, and only {most} of the answers are others",
    )
