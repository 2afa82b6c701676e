"""LR-D2 against SciPy and scikit-learn in the limit, and step by step against Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metabench_plugins.algorithms.closed_form.lr_d2 import LRD2

PENALTY = 0.7


@pytest.mark.parametrize("shots", [(3, 3, 3, 3), (1, 5, 2)], ids=str)
def test_many_steps_reach_the_optimum(
    task: Any, logits: Callable[..., Tensor], shots: tuple[int, ...]
) -> None:
    real = task(shots)
    x, asked = real.with_ones()
    found = logits(LRD2, real, penalty=PENALTY, newton_steps=30)
    for n in range(real.ways):
        y = real.one_hot[:, n]

        def objective(w: np.ndarray, y: np.ndarray = y) -> float:
            losses = np.logaddexp(0, x @ w) - y * (x @ w)
            return float(losses.sum() + PENALTY / 2 * w @ w)

        best = minimize(objective, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(found[:, n], asked @ best.x, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.05, 20.0])
def test_each_step_is_one_of_newton(
    task: Any, logits: Callable[..., Tensor], steps: int, penalty: float
) -> None:
    """w - H^-1 g, with gradient and Hessian of the penalised loss by the weights."""
    real = task((2, 1, 4))
    x, asked = real.with_ones()
    found = logits(LRD2, real, penalty=penalty, newton_steps=steps)
    for n in range(real.ways):
        w = np.zeros(x.shape[1])
        for _ in range(steps):
            mu = expit(x @ w)
            gradient = x.T @ (mu - real.one_hot[:, n]) + penalty * w
            hessian = (x.T * (mu * (1 - mu))) @ x + penalty * np.eye(len(w))
            w = w - np.linalg.solve(hessian, gradient)
        np.testing.assert_allclose(found[:, n], asked @ w, rtol=1e-6, atol=1e-7)


def test_of_two_classes_there_is_one_problem(task: Any, logits: Callable[..., Tensor]) -> None:
    real = task((4, 2))
    x, asked = real.with_ones()
    found = logits(LRD2, real, penalty=PENALTY, newton_steps=30)
    binary = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-10, max_iter=10_000)
    binary.fit(x, real.labels)
    expected = binary.predict_proba(asked)
    np.testing.assert_allclose(found.softmax(-1), expected, atol=1e-6)


def test_saturated_scores_divide_by_nothing(task: Any, logits: Callable[..., Tensor]) -> None:
    """Features of length 1e4: mu (1 - mu) comes to far less than float64 tells from 0."""
    real = task((3, 3, 3), size=20)
    real.features *= 1e4
    assert logits(LRD2, real, penalty=1e-3, newton_steps=40).isfinite().all()


@pytest.mark.parametrize(
    ("length", "penalty", "seeds"), [(100.0, 0.1, range(130, 230)), (1000.0, 10.0, range(50, 100))]
)
def test_classes_that_overlap_leave_nothing_infinite(
    task: Any, logits: Callable[..., Tensor], length: float, penalty: float, seeds: range
) -> None:
    """Newton's steps overshoot by thousands where no plane parts the classes: here and there."""
    real = task((5, 5, 5, 5, 5), size=8)
    real.labels, shape = np.sort(real.labels), real.features.shape
    for seed in seeds:
        drawn = np.random.default_rng(seed).standard_normal((1, *shape))[0]
        real.features = length * drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
        assert logits(LRD2, real, penalty=penalty, newton_steps=30).isfinite().all(), seed
