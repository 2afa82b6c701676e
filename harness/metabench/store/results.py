"""The predictions of one cell at meta-test, as they stand in `episodes.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metabench.engine.metrics import Scores, metric
from metabench.engine.probabilities import Codes
from metabench.episodes.digest import digest_bytes
from metabench.store.files import write_bytes
from metabench.store.parquet import Column, narrow, parquet_bytes, parquet_columns

if TYPE_CHECKING:
    from metabench.engine.evaluate import Outcome

COLUMNS = ("episode", "query", "target", "predicted", "class_id")
CODES = ("surprise", "confidence")
"""Columns that only algorithms have which give probabilities; since version 0.2."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeResults:
    """What was predicted for E episodes of Q queries each; episode e is test episode number e.

    Attributes:
        targets: (E, Q) true labels, 0 to ways - 1.
        predictions: (E, Q) predicted labels.
        classes: (E, Q) the class ids of the data set behind the targets.
        surprise: (E, Q) codes of the probability that the target was given, and
        confidence: of that which was predicted, see `metabench.engine.probabilities`; None where
            the algorithm gives no probabilities, or its cell was tested before they were kept.
    """

    targets: Ints
    predictions: Ints
    classes: Ints
    surprise: Codes | None = None
    confidence: Codes | None = None

    def __post_init__(self) -> None:
        shape = self.targets.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"results are (episodes, queries), not {shape}")
        if any(array.shape != shape for array in self._arrays):
            raise ValueError("targets, predictions, classes and codes differ in shape")
        if (self.surprise is None) != (self.confidence is None):
            raise ValueError("there are codes for both probabilities, or for none")

    @classmethod
    def of(cls, outcome: Outcome) -> EpisodeResults:
        """What an evaluation came to."""
        return cls(
            outcome.targets,
            outcome.predicted,
            outcome.classes,
            outcome.surprise,
            outcome.confidence,
        )

    @property
    def digest(self) -> str:
        """Of all numbers in it, whatever file they stand in: 32 digits."""
        shape = np.array(self.targets.shape, dtype="<i8")
        whole = [np.ascontiguousarray(array, dtype="<i8") for array in (shape, *self._arrays)]
        return digest_bytes(*(array.tobytes() for array in whole)).hex()

    @property
    def queries_digest(self) -> str:
        """Of what was asked, without the answers."""
        return EpisodeResults(self.targets, self.targets, self.classes).digest

    @property
    def _arrays(self) -> list[NDArray[Any]]:
        known = [self.targets, self.predictions, self.classes]
        return known + [codes for codes in (self.surprise, self.confidence) if codes is not None]

    def scores(self, by: str) -> Scores:
        """(E,) scores of the episodes under a protocol's metric.

        Raises:
            UnknownNameError: there is no metric of that name.
        """
        return metric(by)(self.predictions, self.targets)

    def to_parquet(self, path: Path) -> None:
        """Write one row a query; the same results give the same bytes (with one pyarrow)."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the Parquet file."""
        episodes, queries = self.targets.shape
        columns: dict[str, Column] = {
            "episode": np.repeat(np.arange(episodes, dtype=np.int32), queries),
            "query": np.tile(np.arange(queries, dtype=np.int16), episodes),
            "target": narrow(self.targets, np.int16),
            "predicted": narrow(self.predictions, np.int16),
            "class_id": narrow(self.classes, np.int32),
        }
        if self.surprise is not None and self.confidence is not None:
            columns |= {"surprise": self.surprise.ravel(), "confidence": self.confidence.ravel()}
        return parquet_bytes(columns, counters=("episode", "query"))

    @classmethod
    def from_parquet(cls, path: Path) -> EpisodeResults:
        """Read them back.

        Raises:
            ValueError: it is no such file.
            OSError: it cannot be read.
        """
        try:
            columns = parquet_columns(path.read_bytes(), COLUMNS, CODES)
        except ValueError as error:
            raise ValueError(f"{path.name} holds no results of episodes: {error}") from error
        return _grid(columns, path.name)


def _grid(columns: dict[str, NDArray[Any]], name: str) -> EpisodeResults:
    """Rows to (E, Q) arrays, if every query of every episode stands there once and in order."""
    rows = len(columns["query"])
    queries = int(columns["query"].max(initial=-1)) + 1
    if not queries or rows % queries:
        raise ValueError(f"{name} has {rows} rows for {queries} queries an episode")
    row = np.arange(rows)
    if (columns["episode"] != row // queries).any() or (columns["query"] != row % queries).any():
        raise ValueError(f"{name} has rows out of order")
    shape = (-1, queries)
    return EpisodeResults(
        targets=columns["target"].astype(np.int64).reshape(shape),
        predictions=columns["predicted"].astype(np.int64).reshape(shape),
        classes=columns["class_id"].astype(np.int64).reshape(shape),
        **{n: columns[n].astype(np.uint8).reshape(shape) for n in CODES if n in columns},
    )
