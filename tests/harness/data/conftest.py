"""A data home in an empty folder, and a user cache beside it."""

from pathlib import Path

import pytest

from metabench.data.folder import DataHome


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataHome:
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "user-cache"))
    return DataHome(tmp_path / "data", "shapes")
