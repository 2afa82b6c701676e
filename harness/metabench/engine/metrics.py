"""Metrics: what one episode's predictions are worth, a number each; higher is better.

The only place that turns predictions into scores: of validation, of the test and of tables. Another
metric is an entry in `METRICS`, and its name in `MetricName`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.protocol import MetricName
from metabench.errors import unknown_name

Values = NDArray[Any]
Scores = NDArray[np.float64]
Metric = Callable[[Values, Values], Scores]
"""(E, Q, ...) predictions and (E, Q, ...) targets to (E,) scores."""


def accuracy(predicted: Values, targets: Values) -> Scores:
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


METRICS: dict[MetricName, Metric] = {"accuracy": accuracy}
"""By the names that a protocol may have as its metric."""


def metric(name: str) -> Metric:
    """The metric of a protocol.

    Raises:
        UnknownNameError: there is none of that name.
    """
    for known, function in METRICS.items():
        if known == name:
            return function
    raise unknown_name("metric", name, METRICS)
