"""Where data lives: the data folder, and the places that one data set may write to."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from metabench.data.atomic import building, cannot_write, publish, remove_tree, sweep
from metabench.episodes.digest import digest_bytes
from metabench.errors import UsageError

DATA_VARIABLE = "METABENCH_DATA"
CACHE_VARIABLE = "METABENCH_CACHE"
CACHE = "cache"
"""Below a place: what was made from raw files and can be made again."""
DOWNLOADED = "downloaded"
"""Below a place: raw files that metabench fetched itself."""


def data_folder(option: str | Path | None = None) -> Path:
    """The data folder: `option` (`-d`), else METABENCH_DATA, else one in the user cache folder.

    Within `using_data_folder` it is that one. It need not exist yet.

    Raises:
        UsageError: it is a file.
    """
    chosen = option or _used.get() or os.environ.get(DATA_VARIABLE) or cache_folder() / "data"
    return _folder(chosen)


@contextmanager
def using_data_folder(folder: Path) -> Iterator[None]:
    """`data_folder()` is this folder for the duration: what a run was told by `-d`, its cells."""
    token = _used.set(folder)
    try:
        yield
    finally:
        _used.reset(token)


_used: ContextVar[Path | None] = ContextVar("data folder", default=None)


def cache_folder() -> Path:
    """Where caches go whose data folder is read-only: METABENCH_CACHE, else the user's own."""
    return _folder(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("metabench"))


def _folder(chosen: str | Path) -> Path:
    path = Path(chosen).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"the data folder {path} is not a folder",
            f"choose another one with -d/--data-dir, {DATA_VARIABLE} or {CACHE_VARIABLE}",
        )
    return path


def is_writable(path: Path) -> bool:
    """Whether files can be made in `path`, or in what exists of the way to it.

    A folder that nobody may write to counts as read-only for the superuser too, who could: its
    owner meant it so.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    writers = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    return path.is_dir() and bool(path.stat().st_mode & writers) and os.access(path, os.W_OK)


@dataclass(frozen=True)
class DataHome:
    """The places of one data set.

    Raw files that a person put there are read from `raw`. What metabench makes or downloads is
    read from each of `places` and written to the first that can be written: below the data folder,
    or in the user's cache where that is read-only.

    Attributes:
        folder: the data folder.
        name: the data set.
    """

    folder: Path
    name: str

    @property
    def raw(self) -> Path:
        """The data set's folder below the data folder."""
        return self.folder / self.name

    @property
    def places(self) -> tuple[Path, Path]:
        """Where to look for what metabench made; the second is told from the data folder's path."""
        path = os.fsencode(self.folder.absolute())
        mark = digest_bytes(path).hex()[:8]
        return self.raw, cache_folder() / "of-read-only" / f"{self.name}-{mark}"

    def writable(self) -> Path | None:
        """The first of `places` that can be written, or None."""
        return next((place for place in self.places if is_writable(place)), None)

    def place_to_write(self) -> Path:
        """The first of `places` that can be written.

        Raises:
            UsageError: neither can be.
        """
        place = self.writable()
        if place is None:
            raise UsageError(
                f"data set {self.name} has no folder to write to: neither {self.places[0]} nor "
                f"{self.places[1]} can be written",
                f"choose another data folder with -d/--data-dir, or set {CACHE_VARIABLE}",
            )
        return place

    @property
    def downloads(self) -> tuple[Path, ...]:
        """Where to look for what `fetch` brought."""
        return tuple(place / DOWNLOADED for place in self.places)

    def fetch(
        self, name: str, fill: Callable[[Path], None], is_whole: Callable[[Path], bool]
    ) -> Path:
        """A folder `name` of downloaded files that appears whole or not at all.

        Args:
            name: the folder's name, below one of `downloads`.
            fill: downloads into the empty folder it is given.
            is_whole: whether such a folder, found there already, has all files.

        Raises:
            UsageError: there is no folder to write to.
        """
        target = self.place_to_write() / DOWNLOADED / name
        with building(target.parent) as temporary:
            fill(temporary)
            publish(temporary, target, is_whole)
        return target

    def size(self) -> int:
        """Bytes in all places, raw files among them."""
        return tree_size(self.places)

    def sweep(self) -> int:
        """Remove what killed processes left half-made; returns how many folders."""
        kinds = [(), (CACHE,), (DOWNLOADED,)]
        return sum(sweep(place.joinpath(*kind)) for place in self.places for kind in kinds)

    def remove(self) -> int:
        """Delete caches and downloads, never what a person put there; returns the bytes freed.

        Raises:
            UsageError: some of it cannot be deleted.
        """
        freed = 0
        for place in self.places:
            for path in (place / CACHE, place / DOWNLOADED):
                if path.is_dir():
                    freed += _remove(path)
            with suppress(OSError):  # not empty: a person's files are in it
                place.rmdir()
        return freed


def _remove(path: Path) -> int:
    if not is_writable(path.parent):
        raise UsageError(
            f"{path} cannot be removed: its folder is read-only",
            "change the permissions, or leave it",
        )
    size = tree_size([path])
    try:
        remove_tree(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return size


def tree_size(paths: Iterable[Path]) -> int:
    """Bytes of the files below `paths`, which need not exist; links are not followed."""
    total = 0
    for path in paths:
        for folder, _, names in os.walk(path):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # another process finished with it meanwhile
                    continue
    return total
