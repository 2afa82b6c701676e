"""The suite of `metabench.testing.benchmarks`, here with data folders of the tests' own."""

from pathlib import Path

import pytest

from metabench.testing.benchmarks import suite
from metabench.testing.benchmarks.suite import *  # noqa: F403


@pytest.fixture(autouse=True)
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed here: two batches of episodes would do what two episodes do."""
    monkeypatch.setattr(suite, "EPISODES", 2)


@pytest.fixture(scope="session")
def data_folder(data: Path) -> Path:
    """Of the registered data sets, those that need no download are there."""
    return data
