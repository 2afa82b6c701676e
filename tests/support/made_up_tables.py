"""Leaderboards of made-up results, as rows and as files: for the tests of tables."""

import csv
import io
from typing import Any

from hypothesis import HealthCheck, settings

from metabench.leaderboard.table import leaderboard, write_leaderboard

TIMES = {"adapt_ms", "predict_ms", "train_s"}

few = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def by_algorithm(results: Any, suite: str = "study") -> dict[str, dict[str, Any]]:
    return {str(row["algorithm"]): row for row in leaderboard(results.store, suite)}


def files(results: Any, suite: str = "study") -> tuple[str, str]:
    written = write_leaderboard(results.store, suite)
    table, page = (path.read_text(encoding="utf-8") for path in written)
    return table, page


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
