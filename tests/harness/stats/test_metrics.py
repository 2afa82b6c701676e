"""What is said of predictions beside accuracy is what scikit-learn and naive loops say."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, log_loss, recall_score

from metabench.engine.metrics import accuracy
from metabench.engine.probabilities import decode, encode
from metabench.stats.metrics import (
    calibration,
    macro_f1,
    prediction_summary,
    worst_class,
    worst_episodes,
)

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 20))


def labels(ways, dtype=np.int16):
    """Pairs of predicted and true labels; small episodes often leave a class without queries."""
    pairs = SHAPES.map(lambda shape: (2, *shape))
    return pairs.flatmap(lambda shape: arrays(dtype, shape, elements=st.integers(0, ways - 1)))


@given(st.sampled_from([np.int8, np.uint8, np.int64]).flatmap(lambda kind: labels(5, kind)))
def test_macro_f1_is_scikit_learns_over_the_classes_that_are_present(pair):
    predicted, targets = pair
    expected = [
        f1_score(t, p, labels=np.unique(t), average="macro", zero_division=0)
        for p, t in zip(predicted, targets, strict=True)
    ]
    np.testing.assert_allclose(macro_f1(predicted, targets), expected, atol=1e-12)


@given(labels(4), st.data())
def test_the_worst_class_is_that_of_the_lowest_recall(pair, data):
    predicted, targets = pair
    classes = data.draw(arrays(np.int32, targets.shape, elements=st.sampled_from([2, 3, 70, 1000])))
    right = predicted == targets
    ids = np.unique(classes)
    expected = recall_score(  # right or not, as predictions of the class itself
        classes.ravel(), np.where(right, classes, -1).ravel(), labels=ids, average=None
    )
    found = worst_class(predicted, targets, classes)
    assert found.recall == pytest.approx(expected.min())
    assert found.class_id == ids[np.flatnonzero(np.isclose(expected, expected.min()))[0]]


@given(arrays(np.float64, st.integers(1, 130), elements=st.integers(0, 75).map(lambda k: k / 75)))
def test_the_worst_episodes(scores):
    worst = sorted(scores)[: max(1, int(np.ceil(len(scores) * 5 / 100)))]
    assert worst_episodes(scores) == pytest.approx(np.mean(worst))
    assert worst_episodes(scores) <= scores.mean() + 1e-12
    # Risk does not grow where everything gets better.
    assert worst_episodes(scores + 0.1) == pytest.approx(worst_episodes(scores) + 0.1)


def naive_ece(p, right, bin_of=None):
    """Guo et al. 2017, eq. 3, one bin after the other."""
    bin_of = p if bin_of is None else bin_of
    error = 0.0
    for m in range(1, 16):
        inside = (bin_of > (m - 1) / 15) & (bin_of <= m / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    return error


@given(arrays(np.uint8, (2, 4, 9), elements=st.integers(0, 255)), arrays(np.bool_, (4, 9)))
def test_calibration_of_codes_is_a_naive_loops(drawn, right):
    surprise, confidence = drawn
    found = calibration(surprise, confidence, right)
    p = np.exp(-decode(confidence)).ravel()
    p = np.maximum(p, 1e-300)  # exp(-162) stays in the first bin, zero would be in none
    assert found.ece == pytest.approx(naive_ece(p, right.ravel()), abs=1e-12)
    exact = decode(surprise)
    assert found.nll == pytest.approx(exact.mean() - (surprise > 0).mean() / 4800, abs=1e-12)


def model(sharpness, temperature, queries, seed=0):
    """Probabilities (queries, 5) of a model, too sure of itself by a temperature, and truths."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((queries, 5))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    truth = (rng.random((queries, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=4)
    p = p**temperature
    return p / p.sum(axis=1, keepdims=True), truth


@pytest.mark.parametrize("sharpness", [0.3, 1, 3, 8])
@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_what_eight_bits_cost(sharpness, temperature):
    p, truth = model(sharpness, temperature, 75_000)
    sure, right = p.max(axis=1), p.argmax(axis=1) == truth
    of_true = encode(-np.log(p[np.arange(len(p)), truth]))[None]
    of_sure = encode(-np.log(sure))[None]
    found = calibration(of_true, of_sure, right[None])
    assert found.nll == pytest.approx(log_loss(truth, p, labels=range(5)), abs=4e-4)
    # The same bins, as the codes part them, with exact confidences in them.
    assert found.ece == pytest.approx(naive_ece(sure, right, np.exp(-decode(of_sure[0]))), abs=2e-3)
    assert found.ece == pytest.approx(naive_ece(sure, right), abs=0.005)


def test_the_likelihood_of_codes_has_no_bias():
    corrected, raw = [], []
    for seed in range(20):
        p, truth = model(2, 1, 50_000, seed)
        nll = -np.log(p[np.arange(len(p)), truth])
        codes_of = encode(nll)[None]
        right = np.ones(codes_of.shape, dtype=bool)
        corrected.append(calibration(codes_of, codes_of, right).nll - nll.mean())
        raw.append(decode(codes_of).mean() - nll.mean())
    assert np.mean(raw) == pytest.approx(1 / 4800, abs=1e-4)
    assert np.mean(corrected) == pytest.approx(0, abs=1e-4)


def test_what_one_confidence_moves_by():
    p = np.linspace(1e-6, 1, 100_001)
    moved = np.abs(np.exp(-decode(encode(-np.log(p)))) - p)
    assert 0.021 < moved.max() <= 0.0215
    assert p[moved.argmax()] == pytest.approx(0.6, abs=0.02)


def test_certain_and_right_costs_nothing_and_impossible_is_bounded():
    sure, right = np.zeros((1, 10), dtype=np.uint8), np.ones((1, 10), dtype=bool)
    assert calibration(sure, sure, right) == (0.0, 0.0)
    assert calibration(sure + np.uint8(255), sure, ~right) == (
        1.0,
        pytest.approx(162.5625 - 1 / 4800),
    )


def test_all_of_it():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, (40, 15))
    predicted = np.where(rng.random(targets.shape) < 0.6, targets, 0)
    classes = targets + 10
    scores = accuracy(predicted, targets)
    drawn = rng.integers(0, 60, (2, *targets.shape)).astype(np.uint8)
    found = prediction_summary(predicted, targets, classes, scores, *drawn)
    assert found.macro_f1 == macro_f1(predicted, targets).mean()
    assert found.worst_class == worst_class(predicted, targets, classes)
    assert found.worst_episodes == worst_episodes(scores)
    assert found.calibration == calibration(*drawn, predicted == targets)
    assert prediction_summary(predicted, targets, classes, scores).calibration is None


def test_a_table_takes_seconds():
    """84 cells of 1,000 episodes of 75 queries: two of them here, in a generous share of it."""
    rng = np.random.default_rng(0)
    predicted, targets = rng.integers(0, 5, (2, 1000, 75))
    classes, sure = rng.integers(0, 69, targets.shape), rng.integers(0, 60, targets.shape)
    scores, sure = accuracy(predicted, targets), sure.astype(np.uint8)
    before = time.process_time()
    for _ in range(2):
        prediction_summary(predicted, targets, classes, scores, sure, sure)
    assert time.process_time() - before < 0.5


LABELS = np.zeros((2, 3), dtype=int)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: macro_f1(LABELS, LABELS[:1]), "the same queries"),
        (lambda: macro_f1(LABELS[:, :0], LABELS[:, :0]), "the same queries"),
        (lambda: worst_class(LABELS, LABELS, LABELS[0]), "the same queries"),
        (lambda: worst_episodes(np.zeros(0)), "no worst episodes"),
        (lambda: calibration(LABELS, LABELS, LABELS[:1] == 0), "the same queries"),
        (
            lambda: prediction_summary(LABELS, LABELS, LABELS, np.zeros(2), LABELS),
            "of the true class and of the predicted class",
        ),
    ],
)
def test_what_cannot_be_said(call, match):
    with pytest.raises(ValueError, match=match):
        call()
