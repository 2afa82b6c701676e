"""A published table: which cells stand behind each row, and the numbers that were made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metabench.errors import EvidenceError, unknown_name
from metabench.leaderboard.commands import published_command
from metabench.leaderboard.members import Labels, Member
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.source import Source, Trust
from metabench.publishing.evidence import DIGEST, REPRODUCED, Proof
from metabench.publishing.files import Files, first_problem, read_json
from metabench.publishing.reproduction import Reproduction
from metabench.store.files import json_bytes
from metabench.store.record import CellRecord, RunInfo
from metabench.store.results import EpisodeResults

MOST_ROWS = 10_000
TABLE = ".json"
SUBMISSION = "submission.json"
"""Beside the table of a bundle: what is needed to run its cells."""
TAKEN = ("submission", "readme", "measurements", "evidence", "license", "index")
"""Names of other files and folders beside tables, whatever their case: no table's."""
Number = float | int | str | None
Seed = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,18})$")]
Key = Annotated[str, Field(pattern=DIGEST)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class RowLabels(_Model):
    """What tells a row apart within its suite; as `Labels`, for all its seeds."""

    dataset: str = Field(min_length=1, max_length=200)
    protocol: str = Field(min_length=1, max_length=200)
    protocol_digest: str = Field(pattern=DIGEST)
    metric: str = Field(max_length=50)
    algorithm: str = Field(min_length=1, max_length=200)
    variant: str = Field(max_length=500)
    backbone: str = Field(min_length=1, max_length=200)

    @classmethod
    def of(cls, labels: Labels) -> Self:
        return cls(**labels.model_dump(exclude={"id", "seed"}))

    def with_seed(self, seed: int) -> Labels:
        named = f"{self.algorithm}:{self.variant}" if self.variant else self.algorithm
        path = f"{self.dataset}/{self.protocol}/{named}/{self.backbone}/seed{seed}"
        return Labels(id=path, seed=seed, **self.model_dump())


class PublishedRow(_Model):
    """A row.

    Attributes:
        cells: keys of its cells, by seed.
        command: a line that runs it again; its seed may be any of them.
        numbers: its columns in the table, missing ones as null.
    """

    labels: RowLabels
    cells: dict[Seed, Key] = Field(min_length=1, max_length=1000)
    command: str = Field(max_length=2000)
    numbers: dict[str, Number]

    def members(self, records: Mapping[str, CellRecord]) -> list[Member]:
        """Its cells, by seed."""
        seeds = sorted((int(seed), key) for seed, key in self.cells.items())
        return [
            Member(key, self.labels.with_seed(seed), self.command, records[key])
            for seed, key in seeds
        ]


class PublishedTable(_Model):
    """`<suite>.json`: the rows of a suite, in the order of its table."""

    format: Literal[1] = 1
    suite: str = Field(min_length=1, max_length=200)
    rows: tuple[PublishedRow, ...] = Field(max_length=MOST_ROWS)

    @property
    def keys(self) -> list[str]:
        """Of all its cells, sorted."""
        return sorted({key for row in self.rows for key in row.cells.values()})

    def to_bytes(self) -> bytes:
        return json_bytes(self.model_dump(mode="json"))

    @classmethod
    def read(cls, files: Files, suite: str) -> Self:
        """The table of a suite; EvidenceError where it's none."""
        name = table_name(suite)
        value = read_json(files, name)
        try:
            # Tuples are lists in JSON.
            table = cls.model_validate(value, strict=False)
        except ValidationError as error:
            raise first_problem(name, error) from error
        if table.suite != suite:
            raise EvidenceError(f"{name} is the table of suite {table.suite!r}")
        return table


class PublishedSource:
    """Published tables and their evidence as a source of rows."""

    def __init__(
        self, files: Files, tables: Iterable[PublishedTable], proofs: Mapping[str, Proof]
    ) -> None:
        """`proofs`: of all cells of the tables, by key."""
        self.files, self.proofs = files, proofs
        self.tables = {table.suite: table for table in tables}

    @classmethod
    def read(cls, files: Files, suites: Sequence[str] | None = None) -> Self:
        """Tables with all that they stand on; the first thing that isn't right is raised."""
        names = suites_in(files) if suites is None else suites
        tables = [PublishedTable.read(files, name) for name in names]
        keys = sorted({key for table in tables for key in table.keys})
        return cls(files, tables, {key: Proof.read(files, key) for key in keys})

    def members(self, suite: str) -> list[Member]:
        if suite not in self.tables:
            raise unknown_name("published table", suite, self.tables)
        records = {key: proof.record for key, proof in self.proofs.items()}
        return [m for row in self.tables[suite].rows for m in row.members(records)]

    def episodes(self, key: str) -> EpisodeResults:
        return self.proofs[key].episodes

    def disjoint(self, key: str) -> EpisodeResults | None:
        return self.proofs[key].disjoint

    def run_info(self, key: str) -> RunInfo:
        return self.proofs[key].cell.run

    def times(self, record: CellRecord) -> Mapping[str, Any] | None:
        times = self.proofs[record.key].cell.times
        return times.model_dump() if times else None

    def train_s(self, record: CellRecord) -> float | None:
        return self.proofs[record.key].cell.train_s

    def trust(self, cells: Sequence[Member]) -> Trust:
        """Reproduced where some of its cells were run again, all of these to the same end."""
        again = [self.reproductions[c.key] for c in cells if c.key in self.reproductions]
        held = bool(again) and all(found.holds for found in again)
        return "reproduced" if held else "recomputed"

    @cached_property
    def reproductions(self) -> dict[str, Reproduction]:
        """What came of running cells again, by key."""
        found = {}
        for name in self.files.names():
            folder, _, file = name.rpartition("/")
            if folder == REPRODUCED and (key := file.removesuffix(".json")) in self.proofs:
                found[key] = Reproduction.read(self.files, name, self.proofs[key])
        return found

    def rows(self, suite: str) -> list[TableRow]:
        """The rows of a table, recomputed."""
        return table_rows(self, suite)


def published(suite: str, rows: Sequence[TableRow], source: Source) -> PublishedTable:
    """The table of these rows, all of them finished."""
    return PublishedTable(suite=suite, rows=tuple(_row(row, source) for row in rows))


def _row(row: TableRow, source: Source) -> PublishedRow:
    noted = row.members[0].command or source.run_info(row.members[0].key).command
    return PublishedRow(
        labels=RowLabels.of(row.labels),
        cells={str(member.labels.seed): member.key for member in row.members},
        command=published_command(noted),
        numbers=row.to_dict(),  # type: ignore[arg-type]
    )


def stem_of(suite: str) -> str:
    """A suite's name as the first part of a file's, which ends at the first dot."""
    stem = quote(suite, safe=" ").replace(".", "%2E")
    return f"%{ord(stem[0]):X}{stem[1:]}" if stem.lower() in TAKEN else stem


def table_name(suite: str) -> str:
    """The file of a suite's table."""
    return stem_of(suite) + TABLE


def suites_in(files: Files) -> list[str]:
    """The suites of which there are tables."""
    tables = [name for name in files.names() if name.endswith(TABLE) and name != SUBMISSION]
    names = [name.removesuffix(TABLE) for name in tables]
    # At the top, and with no other ending before it (`fewshot.croissant.json`).
    return sorted(unquote(name) for name in names if not {"/", "."} & set(name))
