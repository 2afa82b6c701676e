"""What stood in a published table before: `<suite>.history.json`, which only grows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metabench.errors import EvidenceError
from metabench.publishing.evidence import DIGEST
from metabench.publishing.files import Files, first_problem, read_json
from metabench.publishing.published import Key, PublishedRow, Seed, stem_of
from metabench.store.files import json_bytes

ENDING = ".history.json"
Predictions = Annotated[str, Field(pattern=DIGEST)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Replaced(_Model):
    """A row that stood in the table.

    Attributes:
        row: as it stood there.
        predictions: digests of what its cells predicted, by seed; without those that couldn't be
            read when it was replaced.
        by: keys of the cells of the row that took its place, by seed, and
        by_predictions: digests of what these predicted.
        reason: why it was replaced.
    """

    row: PublishedRow
    predictions: dict[Seed, Predictions]
    by: dict[Seed, Key]
    by_predictions: dict[Seed, Predictions]
    reason: str


class History(_Model):
    """All rows of a suite's table that were replaced, the earliest first.

    Their evidence is no longer in the folder; version control, or an earlier archive, has it.
    """

    format: Literal[1] = 1
    suite: str
    replaced: tuple[Replaced, ...] = ()

    @classmethod
    def read(cls, files: Files, suite: str) -> Self:
        """The history of a suite's table, empty where there is none.

        Raises:
            EvidenceError: its file is something else.
        """
        name = history_name(suite)
        if name not in files.names():
            return cls(suite=suite)
        try:
            found = cls.model_validate(read_json(files, name), strict=False)
        except ValidationError as error:
            raise first_problem(name, error) from error
        if found.suite != suite:
            raise EvidenceError(f"{name} is the history of suite {found.suite!r}")
        return found

    def with_more(self, rows: list[Replaced]) -> Self:
        """With these rows too; an interrupted publication noted some of them already.

        Such a note is the last one of its row: a row may come back and be replaced once more.
        """
        known = list(self.replaced)
        for note in rows:
            last = next((n for n in reversed(known) if n.row.labels == note.row.labels), None)
            if last is None or _told(last) != _told(note):
                known.append(note)
        return self.model_copy(update={"replaced": tuple(known)})

    def to_bytes(self) -> bytes:
        return json_bytes(self.model_dump(mode="json"))


def _told(note: Replaced) -> tuple[object, ...]:
    """What two notes of one replacement have in common, whatever could still be read."""
    return note.row, note.by, note.by_predictions


def history_name(suite: str) -> str:
    """The file of a suite's history."""
    return stem_of(suite) + ENDING
