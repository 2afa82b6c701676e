"""The support vector machine against SciPy, liblinear, and the gap of duality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from sklearn.svm import LinearSVC
from torch import Tensor

from metabench_plugins.algorithms.closed_form.crammer_singer import crammer_singer
from metabench_plugins.algorithms.closed_form.metaoptnet_svm import MetaOptNetSVM


@pytest.mark.parametrize("shots", [(1, 1, 1), (2, 3, 1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("cost", [0.02, 0.5])
def test_it_solves_the_dual(
    task: Any, logits: Callable[..., Tensor], shots: tuple[int, ...], cost: float
) -> None:
    """SciPy's sequential quadratic programming, with the constraints as they are written."""
    real, ridge = task(shots), 0.3
    y = real.one_hot
    kernel = real.gram() + ridge * np.eye(len(y))

    def dual(flat: np.ndarray) -> tuple[float, np.ndarray]:
        a = flat.reshape(y.shape)
        return np.sum(a * (kernel @ a)) / 2 - np.sum(y * a), (kernel @ a - y).ravel()

    sums = LinearConstraint(np.kron(np.eye(len(y)), np.ones((1, real.ways))), 0, 0)
    bounds = [(None, cost * one) for one in y.ravel()]
    best = minimize(
        *(dual, np.zeros(y.size)),
        jac=True,
        method="SLSQP",
        bounds=bounds,
        constraints=sums,
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert best.success
    expected = 2 * real.queries @ real.features.T @ best.x.reshape(y.shape)
    found = logits(MetaOptNetSVM, real, cost=cost, ridge=ridge, scale=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost", [0.01, 0.3])
def test_with_little_ridge_it_is_the_machine_of_liblinear(
    task: Any, logits: Callable[..., Tensor], cost: float
) -> None:
    """Which descends the dual a coordinate after the other, and knows no ridge."""
    real = task((4, 6, 2), size=20)
    machine = LinearSVC(
        C=cost, multi_class="crammer_singer", fit_intercept=False, tol=1e-9, max_iter=1_000_000
    )
    machine.fit(real.features, real.labels)
    found = logits(MetaOptNetSVM, real, cost=cost, ridge=1e-3)
    np.testing.assert_allclose(found, machine.decision_function(real.queries), atol=2e-3)


def test_of_two_classes_it_is_the_binary_machine(task: Any, logits: Callable[..., Tensor]) -> None:
    """Of w and -w: 1/2 (|w|^2 + |w|^2) is 1/4 |2 w|^2, so its cost is doubled."""
    real, cost = task((5, 3), size=20), 0.1
    machine = LinearSVC(C=2 * cost, loss="hinge", fit_intercept=False, tol=1e-9, max_iter=1_000_000)
    machine.fit(real.features, real.labels)
    found = logits(MetaOptNetSVM, real, cost=cost, ridge=1e-3)
    expected = machine.decision_function(real.queries)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    shots=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    size=st.integers(1, 30),
    length=st.sampled_from([0.01, 0.3, 1.0, 5.0]),
    cost=st.sampled_from([1e-3, 0.1, 10.0]),
    twice=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_gap_is_left_between_primal_and_dual(
    shots: list[int], size: int, length: float, cost: float, twice: bool, seed: int
) -> None:
    """Only an optimum closes it; of any tasks, also with items that are there twice."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    x = length * torch.randn(len(labels), size, dtype=torch.float64, generator=generator)
    if twice:
        x[-1] = x[0]
    y = torch.nn.functional.one_hot(labels, len(shots)).double()
    kernel = x @ x.T + 0.1 * torch.eye(len(labels), dtype=torch.float64)
    a = crammer_singer(kernel[None], y[None], cost, steps=30)[0]
    assert (a <= cost * y + 1e-9 * cost).all()
    assert a.sum(1).abs().max() < 1e-9 * cost

    scores = kernel @ a
    margins = 1 - y + scores - (scores * y).sum(1, keepdim=True)
    norm = (a * scores).sum()
    primal = norm / 2 + cost * margins.amax(1).sum()
    dual = (y * a).sum() - norm / 2
    assert abs(primal - dual) < 1e-7 * (1e-6 + primal)


def test_each_of_a_batch_is_solved_by_itself(task: Any) -> None:
    tasks = [task((2, 2, 2), seed=seed) for seed in range(4)]
    scale = np.array([0.1, 1, 3, 10])  # some take more steps than others
    kernel = torch.stack(
        [torch.from_numpy(s * t.gram() + np.eye(6)) for s, t in zip(scale, tasks, strict=True)]
    )
    labels = torch.stack([torch.from_numpy(t.one_hot) for t in tasks])
    together = crammer_singer(kernel, labels, 0.1, 20)
    for b in range(4):
        alone = crammer_singer(kernel[b : b + 1], labels[b : b + 1], 0.1, 20)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-9, atol=1e-12)


def test_derivatives_are_those_of_another_solver(task: Any) -> None:
    """The solution moves with the kernel as differences of liblinear's solution do."""
    real, cost, step = task((3, 3, 2), size=20), 0.05, 1e-3
    rng = np.random.default_rng(5)
    toward = rng.standard_normal(real.features.shape)

    def weights(features: np.ndarray) -> np.ndarray:
        machine = LinearSVC(
            C=cost, multi_class="crammer_singer", fit_intercept=False, tol=1e-12, max_iter=10**7
        )
        return machine.fit(features, real.labels).coef_

    expected = weights(real.features + step * toward) - weights(real.features - step * toward)
    moved = torch.zeros((), dtype=torch.float64)

    def ours(moved: Tensor) -> Tensor:
        x = torch.from_numpy(real.features) + moved * torch.from_numpy(toward)
        kernel = x @ x.T + 1e-6 * torch.eye(len(x), dtype=torch.float64)
        a = crammer_singer(kernel[None], torch.from_numpy(real.one_hot)[None], cost, 30)[0]
        return a.T @ x

    found = torch.autograd.functional.jacobian(ours, moved)
    np.testing.assert_allclose(found, expected / (2 * step), rtol=1e-2, atol=1e-3)
