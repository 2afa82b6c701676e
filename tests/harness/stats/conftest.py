"""What the tests of statistics share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """statsmodels' Holm collects garbage each time: not over all that other tests have imported."""
    import statsmodels.stats.multitest  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
