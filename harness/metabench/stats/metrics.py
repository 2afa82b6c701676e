"""What is said of a row's predictions beside the protocol's metric, recomputed from what is stored.

Predictions are (E, Q): Q queries in each of E test episodes. The published scores come from the
protocol's metric (`metabench.engine.metrics`); nothing here decides a rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabench.engine.probabilities import Codes, decode

Labels = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]

BINS = 15
"""Bins of equal width of the expected calibration error, as in Guo et al. 2017."""
WORST_SHARE = 20
"""The worst episodes are one in so many: 5%."""
CODES = 256


class WorstClass(NamedTuple):
    """The class with the lowest recall.

    Attributes:
        class_id: its id in the data set; of several, the lowest.
        recall: right predictions among all of its queries, 0 to 1.
    """

    class_id: int
    recall: float


class Calibration(NamedTuple):
    """How well probabilities say what happens, over all queries.

    Attributes:
        ece: expected calibration error, 0 to 1.
        nll: mean negative log-likelihood of the true class, in nats.
    """

    ece: float
    nll: float


class PredictionSummary(NamedTuple):
    """What is said of the predictions of one trained model on its test episodes.

    Attributes:
        macro_f1: mean of the episodes' macro-F1.
        worst_class: see `worst_class`.
        worst_episodes: see `worst_episodes`, of the scores by the protocol's metric.
        calibration: see `calibration`; None where the algorithm gives no probabilities.
    """

    macro_f1: float
    worst_class: WorstClass
    worst_episodes: float
    calibration: Calibration | None


def prediction_summary(
    predicted: Labels,
    targets: Labels,
    classes: Labels,
    scores: Scores,
    surprise: Codes | None = None,
    confidence: Codes | None = None,
) -> PredictionSummary:
    """All of it.

    Args:
        predicted: (E, Q) labels in the episode, 0 to ways - 1.
        targets: (E, Q) true labels.
        classes: (E, Q) data-set class ids of the queries.
        scores: (E,) by the protocol's metric.
        surprise: (E, Q) codes of the probability given to the true class, or None.
        confidence: (E, Q) codes of the probability given to the predicted class, or None.

    Raises:
        ValueError: shapes that don't fit, no queries, or one kind of codes without the other.
    """
    if (surprise is None) != (confidence is None):
        raise ValueError("calibration needs codes of the true class and of the predicted class")
    sure = None
    if surprise is not None and confidence is not None:
        sure = calibration(surprise, confidence, predicted == targets)
    return PredictionSummary(
        float(macro_f1(predicted, targets).mean()),
        worst_class(predicted, targets, classes),
        worst_episodes(scores),
        sure,
    )


def macro_f1(predicted: Labels, targets: Labels) -> Scores:
    """The unweighted mean of F1 over each episode's classes.

    F1 of a class is 2 TP / (2 TP + FP + FN). Where an episode has no query of a class (Dirichlet
    proportions), that class is left out of its mean, as in scikit-learn with `labels` the classes
    that are present; a query taken for it is still a miss of its own class.

    Args:
        predicted: (E, Q) labels, 0 or more.
        targets: (E, Q) labels, 0 or more.

    Returns:
        (E,) numbers from 0 to 1.

    Raises:
        ValueError: the shapes differ, or there are no queries.
    """
    _alike(predicted, targets)
    ways = int(max(predicted.max(), targets.max())) + 1
    actual = _counts(targets, ways)
    called = _counts(predicted, ways)
    # A column past the last takes what is wrong, to be dropped.
    right = _counts(np.where(predicted == targets, targets, ways), ways + 1)[:, :ways]
    present = actual > 0
    f1 = 2.0 * right / np.maximum(actual + called, 1)  # 0 where a class is absent: nothing is right
    mean: Scores = f1.sum(axis=1) / present.sum(axis=1)
    return mean


def worst_class(predicted: Labels, targets: Labels, classes: Labels) -> WorstClass:
    """The data-set class with the lowest recall over all its queries.

    The lowest of many noisy numbers: it lies below what the same class would have on other queries.

    Args:
        predicted: (E, Q) labels in the episode.
        targets: (E, Q) true labels.
        classes: (E, Q) data-set class ids of the queries.

    Raises:
        ValueError: the shapes differ, or there are no queries.
    """
    _alike(predicted, targets, classes)
    ids, place = np.unique(classes, return_inverse=True)
    place = place.ravel()
    recall = np.bincount(place, (predicted == targets).ravel()) / np.bincount(place)
    lowest = int(recall.argmin())
    return WorstClass(int(ids[lowest]), float(recall[lowest]))


def worst_episodes(scores: Scores) -> float:
    """The mean of the worst 5% of episodes, rounded up to whole ones: conditional value at risk.

    Args:
        scores: (E,) of the episodes, higher is better.

    Raises:
        ValueError: no episodes.
    """
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"no worst episodes among scores of shape {scores.shape}")
    count = -(-len(scores) // WORST_SHARE)
    return float(np.partition(scores, count - 1)[:count].mean(dtype=np.float64))


def calibration(surprise: Codes, confidence: Codes, right: NDArray[np.bool_]) -> Calibration:
    """Expected calibration error (Guo et al. 2017, eq. 3) and mean negative log-likelihood.

    Probabilities come in 8 bits: a code c stands for all negative log-likelihoods x^2 with x within
    1/40 of c/20. What that costs:

    - NLL: rounding x, spread smoothly, makes the mean of x^2 larger by (1/20)^2 / 12 (Sheppard's
      correction), so 1/4800 is taken off each but those of code 0, which stands for a certain
      prediction and is left at 0. What remains is at most 1/1600 nat for these, and rounding that
      averages out (standard deviation .029 sqrt(NLL) / sqrt(queries)). A likelihood under
      exp(-162.6), 0 among them, counts as that.
    - ECE: a confidence p moves by at most .0215 (near p = .6), the mean confidence of a bin by
      less than .002 unless they all lie within one code. So it is, to .002, the error over 15 bins
      whose edges lie up to .0215 from those of the paper.

    Args:
        surprise: (E, Q) codes of the probability given to the true class.
        confidence: (E, Q) codes of the probability given to the predicted class.
        right: (E, Q), whether the prediction is right.

    Raises:
        ValueError: the shapes differ, or there are no queries.
    """
    _alike(surprise, confidence, right)
    all_codes = np.arange(CODES, dtype=np.uint8)
    nll = decode(all_codes)
    # All queries of a code count alike: sums over 256 codes are sums over the queries.
    surprised = np.bincount(surprise.ravel(), minlength=CODES)
    excess = surprised[1:].sum() / 4800.0
    p = np.exp(-nll)
    of_bin = np.maximum(np.ceil(p * BINS).astype(np.intp) - 1, 0)  # ((m - 1)/15, m/15]
    sure = np.bincount(confidence.ravel(), minlength=CODES)
    hits = np.bincount(confidence.ravel(), right.ravel(), minlength=CODES)
    gaps = np.bincount(of_bin, hits - sure * p, minlength=BINS)
    return Calibration(
        ece=float(np.abs(gaps).sum() / surprise.size),
        nll=float((surprised @ nll - excess) / surprise.size),
    )


def _counts(labels: Labels, ways: int) -> NDArray[np.intp]:
    """(E, ways): how many of an episode's labels are each."""
    episodes = len(labels)
    flat = labels + np.arange(episodes)[:, None] * ways
    return np.bincount(flat.ravel(), minlength=episodes * ways).reshape(episodes, ways)


def _alike(*arrays: NDArray[Any]) -> None:
    """All are (E, Q), of the same queries, or ValueError."""
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ValueError(f"arrays of {', '.join(map(str, shapes))} are not of the same queries")
