"""Bundles taken apart and put together otherwise, as somebody would who knows how they are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from metabench.leaderboard.source import Trust
from metabench.publishing.evidence import CellEvidence, Proof
from metabench.publishing.files import Files, GivenFiles
from metabench.publishing.published import (
    SUBMISSION,
    PublishedSource,
    PublishedTable,
    published,
    suites_in,
    table_name,
)
from metabench.publishing.submission import Submission
from metabench.publishing.verify import Report
from metabench.store.files import bytes_digest, json_bytes
from metabench.store.keys import CellIdentity
from metabench.store.record import CellRecord
from metabench.store.results import EpisodeResults


class Forgery:
    """The files of a bundle or folder, to be changed.

    Attributes:
        files: by name.
        suite: of its table.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        (self.suite,) = suites_in(self.given())

    def given(self) -> GivenFiles:
        return GivenFiles(self.files, "forged")

    def json(self, name: str) -> Any:
        return json.loads(self.files[name])

    def change(self, name: str, change: Callable[[Any], object]) -> None:
        """Change the JSON of a file."""
        value = self.json(name)
        change(value)
        self.files[name] = json_bytes(value)

    @property
    def table(self) -> Any:
        return self.json(table_name(self.suite))

    def change_row(self, change: Callable[[Any], object], row: int = 0) -> None:
        self.change(table_name(self.suite), lambda table: change(table["rows"][row]))

    def key(self, row: int = 0, seed: int = 0) -> str:
        return str(self.table["rows"][row]["cells"][str(seed)])

    def row_of(self, algorithm: str) -> int:
        names = [row["labels"]["algorithm"] for row in self.table["rows"]]
        return names.index(algorithm)

    def proof(self, row: int = 0, seed: int = 0) -> Proof:
        return Proof.read(self.given(), self.key(row, seed))

    def change_cell(self, change: Callable[[Any], object], row: int = 0, seed: int = 0) -> None:
        """Change what isn't sealed of a cell."""
        self.change(f"evidence/cells/{self.key(row, seed)}.json", change)

    def replace(
        self,
        row: int = 0,
        seed: int = 0,
        *,
        identity: Callable[[dict[str, Any]], object] | None = None,
        episodes: EpisodeResults | None = None,
        result: Mapping[str, Any] | None = None,
        follows: bool = True,
        keep_old: bool = False,
        inference: Literal["inductive", "transductive"] | None = None,
        unsure_apart: bool = False,
        sure: bool = False,
    ) -> str:
        """Put another cell, sealed as if it were real, in the place of one; returns its key.

        Args:
            follows: the record's score is made to follow from its predictions.
            keep_old: the old one stays where it is, and the new one is of no table yet.
            unsure_apart: its disjoint episodes have no probabilities.
            sure: it claims probabilities, that of 1 for all that is right.
        """
        old = self.proof(row, seed)
        facts = old.record.identity.to_json()
        if identity is not None:
            identity(facts)
        results, disjoint = episodes or old.episodes, old.disjoint
        if unsure_apart and disjoint is not None:
            disjoint = replace(disjoint, surprise=None, confidence=None)
        if sure:
            results, disjoint = surest(results), surest(disjoint) if disjoint else None
        changes: dict[str, Any] = {"predictions": results.digest}
        changes["disjoint"] = disjoint.digest if disjoint else ""
        if follows:
            scores = results.scores("accuracy")
            changes |= {"score": float(scores.mean()), "episodes": len(scores)}
        record = CellRecord.seal(
            CellIdentity.model_validate(facts),
            dict(old.record.files),
            inference=inference or old.record.inference,
            result=old.record.result.model_copy(update={**changes, **(result or {})}),
            phases=old.record.phases,
        )
        cell = old.cell.model_copy(
            update={"record": record.to_json(), "queries": results.queries_digest}
        )
        new = Proof(record, CellEvidence.model_validate(cell.model_dump()), results, disjoint)
        if not keep_old:
            for ending in ("json", "parquet"):
                self.files.pop(f"evidence/cells/{old.record.key}.{ending}", None)
        self.files |= new.files()
        if not keep_old:
            self.change_row(lambda r: r["cells"].update({str(seed): record.key}), row)
        return record.key

    def renumbered(self, trust: Trust | None = "self-reported") -> Forgery:
        """With the numbers that its evidence makes; itself."""
        source = PublishedSource.read(self.given())
        rows = source.rows(self.suite)
        if trust is not None:
            rows = [replace(row, trust=trust) for row in rows]
        table: PublishedTable = published(self.suite, rows, source)
        self.files[table_name(self.suite)] = table.to_bytes()
        return self

    def resealed(self) -> GivenFiles:
        """The files, listed in `submission.json` as they are."""
        told = Submission.model_validate(self.json(SUBMISSION))
        digests = {n: bytes_digest(d) for n, d in self.files.items() if n != SUBMISSION}
        draft = told.model_copy(update={"files": digests})
        sealed = draft.model_copy(update={"digest": draft._seal()})
        self.files[SUBMISSION] = sealed.to_bytes()
        return self.given()


def edited(results: EpisodeResults, count: int = 1) -> EpisodeResults:
    """The first wrong predictions made right, and their targets as likely as what they were."""
    wrong = tuple(np.argwhere(results.predictions != results.targets)[:count].T)
    predictions, surprise = results.predictions.copy(), results.surprise
    predictions[wrong] = results.targets[wrong]
    if surprise is not None and results.confidence is not None:
        surprise = surprise.copy()
        surprise[wrong] = results.confidence[wrong]
    return replace(results, predictions=predictions, surprise=surprise)


def surest(results: EpisodeResults) -> EpisodeResults:
    """Sure of all that is right, and of nothing else."""
    right = results.predictions == results.targets
    sure = np.where(right, 0, 255).astype(np.uint8)
    return replace(results, surprise=sure, confidence=np.where(right, 0, 20).astype(np.uint8))


def first_episodes(results: EpisodeResults, count: int) -> EpisodeResults:
    """Only so many episodes."""
    parts = {
        name: getattr(results, name)[:count]
        for name in ("targets", "predictions", "classes", "surprise", "confidence")
        if getattr(results, name) is not None
    }
    return EpisodeResults(**parts)


Check = Callable[[Files], Report]
"""Verifies files against the data of the test."""


def reasons(report: Report, check: str) -> str:
    """Why a check doesn't hold; fails unless it does not."""
    assert not report.ok
    found = [finding.why for finding in report.wrong() if finding.check == check]
    assert found, [(finding.check, finding.why) for finding in report.wrong()]
    return "; ".join(found)
