"""The numbers of a row, recomputed from what its cells predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.digest import digest_bytes
from metabench.episodes.protocol import Rotation
from metabench.errors import StoreError
from metabench.leaderboard.source import Source
from metabench.stats.intervals import DataIntervals, RowSummary, data_intervals, row_summary
from metabench.stats.metrics import PredictionSummary, WorstClass, prediction_summary, worst_class
from metabench.store.record import CellRecord
from metabench.store.results import EpisodeResults

QUARTER_TURNS = 4
"""Class ids of one class, one after the other, where its turns count as classes (`ClassBank`)."""
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class RowNumbers:
    """What the predictions of a row's cells come to.

    Attributes:
        runs: seed -> (E,) scores by the protocol's metric.
        summary: over episodes and seeds.
        data: where the data are the sample; None without disjoint episodes.
        quality: of each seed's predictions.
        worst_class: over all seeds.
        seen: digest of the test episodes that were met.
    """

    runs: dict[int, Scores]
    summary: RowSummary
    data: DataIntervals | None
    quality: tuple[PredictionSummary, ...]
    worst_class: WorstClass
    seen: str

    def columns(self) -> dict[str, object]:
        """The columns of a table that come from predictions, but for the ranks."""
        summary, data = self.summary, self.data
        sure = [q.calibration for q in self.quality if q.calibration is not None]
        calibrated = len(sure) == len(self.quality)
        return {
            "score": summary.score,
            "ci95": summary.ci95,
            "seed_std": summary.seed_std,
            "seed_ci95": summary.seed_ci95,
            "disjoint": data.episodes if data else None,
            "disjoint_score": data.score if data else None,
            "ci95_items": data.new_items if data else None,
            "ci95_classes": data.new_classes if data else None,
            "macro_f1": fmean(q.macro_f1 for q in self.quality),
            "worst_episodes": fmean(q.worst_episodes for q in self.quality),
            "worst_class": self.worst_class.recall,
            "worst_class_id": self.worst_class.class_id,
            "ece": fmean(c.ece for c in sure) if calibrated else None,
            "nll": fmean(c.nll for c in sure) if calibrated else None,
        }


NUMBERS = (
    *("score", "ci95", "seed_std", "seed_ci95"),
    *("disjoint", "disjoint_score", "ci95_items", "ci95_classes"),
    *("macro_f1", "worst_episodes", "worst_class", "worst_class_id", "ece", "nll"),
)
"""The keys of `RowNumbers.columns`."""


def row_numbers(source: Source, name: str, records: Sequence[CellRecord]) -> RowNumbers:
    """The numbers of a row's finished cells.

    Args:
        name: of the row, for messages.

    Raises:
        StoreError: predictions can't be read, or the seeds met different episodes.
    """
    results = [tested_episodes(source, record) for record in records]
    seen = {
        episodes_digest(record, tested) for record, tested in zip(records, results, strict=True)
    }
    if len(seen) > 1:
        raise StoreError(
            f"{name}: the seeds of this row were tested on different episodes",
            "run the suite again with --fresh",
        )
    metric = str(records[0].identity.protocol.get("metric"))
    scores = [tested.scores(metric) for tested in results]
    return RowNumbers(
        runs={r.identity.seed: part for r, part in zip(records, scores, strict=True)},
        summary=row_summary(np.stack(scores)),
        data=_data(source, name, records, metric),
        quality=tuple(_quality(t, s) for t, s in zip(results, scores, strict=True)),
        worst_class=worst_class(
            *(
                np.concatenate([getattr(tested, part) for tested in results])
                for part in ("predictions", "targets", "classes")
            )
        ),
        seen=seen.pop(),
    )


def tested_episodes(source: Source, record: CellRecord) -> EpisodeResults:
    """What a finished cell predicted; StoreError unless its protocol has as many episodes."""
    results, asked = source.episodes(record.key), record.identity.protocol.get("episodes")
    if len(results.targets) != asked:
        raise StoreError(
            f"cell {record.key} has {len(results.targets)} test episodes, its protocol has {asked}",
            "run the suite again with --fresh",
        )
    return results


def episodes_digest(record: CellRecord, results: EpisodeResults) -> str:
    """Of the episodes that a cell met, and of the class split that they are from."""
    splits = record.identity.dataset.classes.encode()
    return digest_bytes(results.targets.tobytes(), results.classes.tobytes(), splits).hex()


def _quality(tested: EpisodeResults, scores: Scores) -> PredictionSummary:
    return prediction_summary(
        tested.predictions,
        tested.targets,
        tested.classes,
        scores,
        tested.surprise,
        tested.confidence,
    )


def _data(
    source: Source, name: str, records: Sequence[CellRecord], metric: str
) -> DataIntervals | None:
    found = [source.disjoint(record.key) for record in records]
    known = [results for results in found if results is not None]
    if len(known) < len(records):
        return None
    if len({results.queries_digest for results in known}) > 1:
        raise StoreError(
            f"{name}: the seeds of this row were tested on different disjoint episodes",
            "run the suite again with --fresh",
        )
    classes = known[0].classes
    if records[0].identity.protocol.get("rotation") == Rotation.CLASSES:
        classes = classes // QUARTER_TURNS  # four turns of a class are not four of a population
    return data_intervals(np.stack([part.scores(metric) for part in known]), classes)
