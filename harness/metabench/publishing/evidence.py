"""Evidence: of each published cell its record, on what it ran, its times and its predictions.

A record carries the digest of its cell's predictions, so these are known again in another file. The
record itself isn't signed: that its numbers follow from its predictions can be checked here, that
somebody didn't make up the predictions only by running it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metabench.errors import EvidenceError
from metabench.leaderboard.commands import published_command
from metabench.leaderboard.source import Source
from metabench.publishing.files import Files, first_problem, read_json
from metabench.publishing.guarded import guarded_columns
from metabench.publishing.packing import LEVEL, SHIFT, SURE, packed, unpacked
from metabench.store.files import json_bytes
from metabench.store.parquet import narrow, parquet_bytes
from metabench.store.record import CellRecord, CorruptError, RunInfo
from metabench.store.results import EpisodeResults

CELLS, QUERIES, REPRODUCED = "evidence/cells", "evidence/queries", "evidence/reproduced"
DIGEST = "^[0-9a-f]{32}$"
MOST_WAYS = 2**15
MOST_QUERIES = 20_000_000
"""Of one cell, disjoint episodes included."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class CellTimes(_Model):
    """Times of one episode as the timing stage took them, and what they are checked by.

    Attributes:
        adapt_ms, predict_ms: medians, milliseconds.
        adapt_flops, predict_flops: counted operations; None where they can't be counted.
        peak_flops: the most a second that the machine reaches.
    """

    adapt_ms: float | None = None
    predict_ms: float | None = None
    adapt_flops: int | None = None
    predict_flops: int | None = None
    peak_flops: float | None = None

    @classmethod
    def of(cls, times: Mapping[str, Any]) -> Self:
        """From the content of a `timing/<machine>.json`."""
        parts, conditions = times.get("parts", {}), times.get("conditions", {})
        flops = {f"{name}_flops": parts.get(name, {}).get("flops") for name in ("adapt", "predict")}
        peak = conditions.get("peak_flops")
        known = {name: times.get(name) for name in ("adapt_ms", "predict_ms")}
        return cls(**known, **flops, peak_flops=None if peak is None else float(peak))


class CellEvidence(_Model):
    """`evidence/cells/<key>.json`.

    Attributes:
        record: the content of the cell's `record.json`.
        run: on what it ran, from an allow-list; its command names no folder.
        train_s: seconds of training, shared phases included.
        times: None where it wasn't timed.
        queries, disjoint_queries: digests of what was asked, see `EpisodeResults.queries_digest`;
            the latter empty without disjoint episodes.
    """

    format: Literal[1] = 1
    record: dict[str, Any]
    run: RunInfo
    train_s: float | None = Field(None, ge=0)
    times: CellTimes | None = None
    queries: str = Field(pattern=DIGEST)
    disjoint_queries: str = Field("", pattern=f"^$|{DIGEST}")


@dataclass(frozen=True)
class Proof:
    """All that is published of one cell."""

    record: CellRecord
    cell: CellEvidence
    episodes: EpisodeResults
    disjoint: EpisodeResults | None

    @classmethod
    def of(cls, source: Source, record: CellRecord) -> Proof:
        """What a result folder has of a finished cell.

        Raises:
            EvidenceError: its record doesn't say what it predicted: an earlier version made it.
        """
        episodes, disjoint = source.episodes(record.key), source.disjoint(record.key)
        run, times = source.run_info(record.key), source.times(record)
        cell = CellEvidence(
            record=record.to_json(),
            run=run.model_copy(update={"command": published_command(run.command)}),
            train_s=source.train_s(record),
            times=CellTimes.of(times) if times else None,
            queries=episodes.queries_digest,
            disjoint_queries=disjoint.queries_digest if disjoint else "",
        )
        return cls(record, cell, episodes, disjoint)._checked()

    @classmethod
    def read(cls, files: Files, key: str) -> Proof:
        """What was published of a cell, whole and as its record says.

        Raises:
            EvidenceError: something is missing or isn't what it says.
        """
        name = f"{CELLS}/{key}"
        try:
            cell = CellEvidence.model_validate(read_json(files, f"{name}.json"))
            record = CellRecord.parse(cell.record)
        except ValidationError as error:
            raise first_problem(f"{name}.json", error) from error
        except CorruptError as error:
            raise EvidenceError(f"{name}.json: its record was changed: {error}") from error
        if record.key != key:
            raise EvidenceError(f"{name}.json is the record of another cell, {record.key}")
        asked = [_read_queries(files, q) for q in (cell.queries, cell.disjoint_queries) if q]
        parts = _read_predictions(files, f"{name}.parquet", asked, _ways(record))
        disjoint = parts[1] if cell.disjoint_queries else None
        return cls(record, cell, parts[0], disjoint)._checked()

    def files(self) -> dict[str, bytes]:
        """Its files by name."""
        name = f"{CELLS}/{self.record.key}"
        found = {
            f"{name}.json": json_bytes(self.cell.model_dump(mode="json")),
            f"{name}.parquet": self._predictions(),
        }
        for results in filter(None, (self.episodes, self.disjoint)):
            found[f"{QUERIES}/{results.queries_digest}.parquet"] = _queries(results)
        return found

    def _predictions(self) -> bytes:
        parts = [part for part in (self.episodes, self.disjoint) if part is not None]
        try:
            return packed(parts, _ways(self.record))
        except ValueError as error:
            raise EvidenceError(f"cell {self.record.key} predicted {error}") from error

    def _checked(self) -> Proof:
        """Itself, if the predictions are those that the record vouches for."""
        result, key = self.record.result, self.record.key
        if not result.predictions:
            raise EvidenceError(
                f"the record of cell {key} does not vouch for its predictions",
                "it is of an earlier version: run it again",
            )
        disjoint = self.disjoint.digest if self.disjoint else ""
        if (self.episodes.digest, disjoint) != (result.predictions, result.disjoint):
            raise EvidenceError(f"the predictions of cell {key} are not those of its record")
        return self


def _queries(results: EpisodeResults) -> bytes:
    episodes, queries = results.targets.shape
    columns = {
        "episode": np.repeat(np.arange(episodes, dtype=np.int32), queries),
        "target": narrow(results.targets, np.int16),
        "class_id": narrow(results.classes, np.int32),
    }
    return parquet_bytes(columns, counters=("episode",), streams=True, level=LEVEL)


def _read_queries(files: Files, digest: str) -> EpisodeResults:
    """What was asked, with the right answers in the place of predictions."""
    return _queries_in(digest, files.read(f"{QUERIES}/{digest}.parquet"))


@lru_cache(maxsize=4)
def _queries_in(digest: str, data: bytes) -> EpisodeResults:
    """The same from a file's content; kept, as all cells of a protocol were asked the same."""
    name = f"{QUERIES}/{digest}.parquet"
    columns = _columns(name, data, ("episode", "target", "class_id"))
    episode = columns["episode"]
    episodes = int(episode.max(initial=-1)) + 1
    rows = len(episode)
    if episodes < 1 or rows % episodes:
        raise EvidenceError(f"{name} has {rows} rows for {episodes} episodes")
    if (episode != np.arange(rows) // (rows // episodes)).any():
        raise EvidenceError(f"{name} has rows out of order")
    target, of = (columns[k].astype(np.int64).reshape(episodes, -1) for k in ("target", "class_id"))
    if target.min() < 0 or of.min() < 0:
        raise EvidenceError(f"{name} has labels or class ids below 0")
    results = EpisodeResults(target, target, of)
    if results.queries_digest != digest:
        raise EvidenceError(f"{name} has another content than its name says")
    return results


def _read_predictions(
    files: Files, name: str, asked: Sequence[EpisodeResults], ways: int
) -> list[EpisodeResults]:
    columns = _columns(name, files.read(name), (SHIFT,), SURE)
    try:
        return unpacked(columns, asked, ways)
    except ValueError as error:
        raise EvidenceError(f"{name}: {error}") from error


def _ways(record: CellRecord) -> int:
    ways = record.identity.protocol.get("ways")
    if not isinstance(ways, int) or not 1 <= ways <= MOST_WAYS:
        raise EvidenceError(f"the record of cell {record.key} is of no protocol with ways")
    return ways


def _columns(
    name: str, data: bytes, wanted: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    try:
        return guarded_columns(data, wanted, optional, MOST_QUERIES)
    except ValueError as error:
        raise EvidenceError(f"{name}: {error}") from error
