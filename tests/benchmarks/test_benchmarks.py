"""The suite of `metabench.testing.benchmarks`, here with data folders of the tests' own."""

from pathlib import Path

import pytest

from metabench.testing.benchmarks.suite import *  # noqa: F403


@pytest.fixture(scope="session")
def data_folder(data: Path) -> Path:
    """Of the registered data sets, those that need no download are there."""
    return data
