"""Where `metabench compare` reads: result folders and published tables, and of which suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metabench.cli.options import suite_name
from metabench.errors import StoreError, UnknownNameError, UsageError, unknown_name

if TYPE_CHECKING:
    from metabench.leaderboard.source import Source
    from metabench.store.store import Store


class Place(NamedTuple):
    """Where rows are read from: a result folder, or published tables.

    Attributes:
        path: as it was typed.
        suites: those there are.
        store: None for published tables.
    """

    path: Path
    suites: list[str]
    store: Store | None

    @classmethod
    def open(cls, path: Path) -> Place:
        """Raises StoreError for a folder that holds neither, or can't be read."""
        from metabench.publishing.files import FolderFiles
        from metabench.publishing.published import suites_in
        from metabench.store.store import MARK, Store

        if (path / MARK).exists() or not path.is_dir():
            store = Store.open(path, create=False)
            return cls(path, store.suites(), store)
        suites = suites_in(FolderFiles(path))
        if not suites:
            raise StoreError(
                f"there are neither results nor published tables in {path}",
                "name a result folder, or one that metabench publish wrote",
            )
        return cls(path, suites, None)

    def source(self, suite: str) -> Source:
        """What has the rows of a suite."""
        from metabench.leaderboard.source import StoreSource
        from metabench.publishing.files import FolderFiles
        from metabench.publishing.published import PublishedSource

        if self.store is not None:
            return StoreSource(self.store)
        return PublishedSource.read(FolderFiles(self.path), [suite])

    def check(self, suite: str) -> None:
        """Raise UnknownNameError, with the nearest name, unless it has this suite."""
        from metabench.leaderboard.members import check_suite

        if self.store is not None:
            check_suite(self.store, suite)
        elif suite not in self.suites:
            raise UnknownNameError(
                f"there is no published table of suite {suite!r} in {self.path}",
                unknown_name("suite", suite, self.suites).hint,
            )


def which_suite(asked: str | None, places: Sequence[Place]) -> str:
    """The suite that is meant: what was asked for, or the only one that all of them have.

    Raises:
        UnknownNameError: one of them has no such suite.
        UsageError: none was asked for, and there is none, or several.
    """
    shared = [name for name in places[0].suites if all(name in p.suites for p in places)]
    if asked is not None:
        name = suite_name(asked, shared)
        for place in places:
            place.check(name)
        return name
    if len(shared) == 1:
        return shared[0]
    where = " and ".join(str(place.path) for place in places)
    if shared:
        raise UsageError(
            f"which suite of {where} is meant?", f"say it with -s: there are {', '.join(shared)}"
        )
    there = [f"{place.path} has {', '.join(place.suites) or 'none'}" for place in places]
    if len(places) == 1:
        raise UsageError(f"there is no suite in {where}", "run one into it")
    raise UsageError(f"no suite is in both {where}", "; ".join(there))
