"""Made-up results published into a folder, and what is in such a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metabench.episodes.digest import digest_bytes
from metabench.leaderboard.source import StoreSource
from metabench.publishing.again import Again
from metabench.publishing.files import FolderFiles
from metabench.publishing.folder import Publication, publish
from metabench.publishing.published import PublishedSource
from metabench.publishing.verify.episodes import DataHere
from metabench.registry import Registry

SUITE = "study"
LATER = "2026-02-02T00:00:00+00:00"


def publish_results(
    results: Any, folder: Path, *, suite: str = SUITE, again: Any = None, replacing: bool = False
) -> Publication:
    """Publish the results of a fixture, where no data set is installed."""
    source = StoreSource(results.store)
    second = Again.of(again.store, suite, results.store) if again else None
    here = DataHere(Registry(), folder.parent / "data")
    return publish(source, suite, folder, here, replacing=replacing, again=second)


def published_in(folder: Path, suite: str = SUITE) -> PublishedSource:
    return PublishedSource.read(FolderFiles(folder), [suite])


def row_of(folder: Path, algorithm: str, suite: str = SUITE) -> Any:
    [row] = [r for r in published_in(folder, suite).rows(suite) if r.labels.algorithm == algorithm]
    return row


def content(folder: Path) -> dict[str, str]:
    """Digests of all files by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): digest_bytes(p.read_bytes()).hex() for p in files}
