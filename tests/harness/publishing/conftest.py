"""What the tests of tampered files share: a real bundle to forge, and its verification."""

from __future__ import annotations

from pathlib import Path

import pytest
from forging import Check, Forgery
from small_bundle import small_bundle

from metabench.plugins import registry
from metabench.publishing.verify import verify_files


@pytest.fixture
def forgery(data: Path) -> Forgery:
    return Forgery(small_bundle(data))


@pytest.fixture
def check(data: Path) -> Check:
    return lambda files: verify_files(files, registry(), data)
