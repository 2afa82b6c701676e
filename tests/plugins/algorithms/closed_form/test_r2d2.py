"""R2-D2 against scikit-learn's ridge regression, which solves for the weights themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from torch import Tensor

from metabench_plugins.algorithms.closed_form.r2d2 import R2D2


@pytest.mark.parametrize("shots", [(1, 1, 1, 1), (3, 1, 5, 2), (40, 30)], ids=str)
@pytest.mark.parametrize("penalty", [0.01, 30.0])
def test_predictions_are_those_of_ridge_regression(
    task: Any, logits: Callable[..., Tensor], shots: tuple[int, ...], penalty: float
) -> None:
    """With fewer items than dimensions, and more."""
    real = task(shots)
    x, asked = real.with_ones()
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="svd")
    ridge.fit(x, real.one_hot)
    expected = 2.5 * ridge.predict(asked)
    found = logits(R2D2, real, penalty=penalty, scale=2.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
