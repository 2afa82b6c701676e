"""Metrics: what one episode's predictions are worth, a number each; higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metabench.errors import unknown_name

Ids = NDArray[np.integer]
Scores = NDArray[np.float64]
Metric = Callable[[Ids, Ids], Scores]
"""(E, Q) predicted and (E, Q) true class ids to (E,) scores."""


def accuracy(predicted: Ids, targets: Ids) -> Scores:
    """The share of right predictions in each episode.

    Args:
        predicted: (E, Q) class ids.
        targets: (E, Q) class ids.

    Returns:
        (E,) numbers from 0 to 1.

    Raises:
        ValueError: the shapes differ, or there are no queries.
    """
    if predicted.shape != targets.shape or predicted.ndim != 2 or predicted.shape[1] == 0:
        raise ValueError(f"accuracy of {predicted.shape} predictions for {targets.shape} targets")
    right: Scores = np.mean(predicted == targets, axis=1, dtype=np.float64)
    return right


METRICS: dict[str, Metric] = {"accuracy": accuracy}
"""By the names that a protocol may have as its metric."""


def metric(name: str) -> Metric:
    """The metric of a protocol.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
