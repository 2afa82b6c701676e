"""Metrics: one number an episode, from one place, by the names that a protocol may have."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from metabench.engine.evaluate import Outcome
from metabench.engine.metrics import METRICS, accuracy, metric
from metabench.episodes.protocol import MetricName
from metabench.errors import UnknownNameError
from metabench.store.results import EpisodeResults


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 4)))
def test_accuracy_is_the_share_of_right_predictions(targets):
    assert (accuracy(targets, targets) == 1).all()
    assert (accuracy(targets + 1, targets) == 0).all()
    predicted = targets.copy()
    predicted[:, 0] += 1
    np.testing.assert_allclose(accuracy(predicted, targets), 1 - 1 / targets.shape[1])


@pytest.mark.parametrize(("predicted", "targets"), [((2, 3), (2, 4)), ((3,), (3,)), ((2, 0),) * 2])
def test_what_has_no_accuracy(predicted, targets):
    with pytest.raises(ValueError, match="accuracy of"):
        accuracy(np.zeros(predicted, dtype=int), np.zeros(targets, dtype=int))


def test_metrics_go_by_the_protocols_names():
    assert metric("accuracy") is accuracy
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        metric("acuracy")


def test_every_metric_of_a_protocol_has_a_function():
    assert set(get_args(MetricName)) == set(METRICS)


def test_another_metric_is_one_entry(monkeypatch):
    """Validation, the record's score and the tables all go by it."""

    def last_right(predicted, targets):
        return (predicted == targets)[:, -1].astype(float)

    monkeypatch.setitem(METRICS, "last", last_right)
    targets, predicted = np.array([[0, 1], [0, 1]]), np.array([[0, 0], [1, 1]])
    outcome = Outcome(targets, predicted, targets)
    results = EpisodeResults(targets, predicted, targets)
    assert outcome.scores("last").tolist() == results.scores("last").tolist() == [0.0, 1.0]
    assert outcome.scores("accuracy").tolist() == results.scores("accuracy").tolist() == [0.5, 0.5]
    assert outcome.score("last") == 0.5
