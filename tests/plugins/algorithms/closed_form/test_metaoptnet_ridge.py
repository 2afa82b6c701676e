"""MetaOptNet's ridge head against the optimum of its dual that SciPy finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from torch import Tensor

from metabench_plugins.algorithms.closed_form.metaoptnet_ridge import MetaOptNetRidge


@pytest.mark.parametrize("shots", [(1, 1, 1), (2, 4, 1)], ids=str)
def test_it_solves_the_dual(
    task: Any, logits: Callable[..., Tensor], shots: tuple[int, ...]
) -> None:
    real, penalty = task(shots), 0.7
    kernel = real.gram() + penalty * np.eye(len(real.labels))

    def dual(flat: np.ndarray) -> tuple[float, np.ndarray]:
        a = flat.reshape(real.one_hot.shape)
        value = np.sum(a * (kernel @ a)) / 2 - 2 * np.sum(real.one_hot * a)
        return value, (kernel @ a - 2 * real.one_hot).ravel()

    best = minimize(
        dual, np.zeros(real.one_hot.size), jac=True, method="BFGS", options={"gtol": 1e-10}
    )
    weights = real.features.T @ best.x.reshape(real.one_hot.shape)
    found = logits(MetaOptNetRidge, real, penalty=penalty, scale=3.0)
    np.testing.assert_allclose(found, 3 * real.queries @ weights, atol=1e-6)
