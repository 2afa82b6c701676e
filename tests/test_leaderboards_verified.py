"""Every published table of this repository follows from the evidence beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metabench.plugins import registry
from metabench.publishing.files import FolderFiles
from metabench.publishing.verify import verify_files

TABLES = Path(__file__).parents[1] / "leaderboards"


@pytest.mark.skipif(
    not (TABLES / "evidence").is_dir(), reason="no evidence is published yet (metabench publish)"
)
def test_the_published_tables_follow_from_their_evidence(data: Path) -> None:
    report = verify_files(FolderFiles(TABLES), registry(), data)
    assert report.ok, [f"{f.check} {f.what}: {f.why}" for f in report.wrong()]
