"""A shelf: finished folders by key, published whole, verified when they are looked at."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from metabench.errors import StoreError
from metabench.store import files
from metabench.store.keys import Identity
from metabench.store.machine import unique_name
from metabench.store.record import RECORD, UNLISTED, CorruptError, FileFacts, Record

log = logging.getLogger("metabench.store")
R = TypeVar("R", bound=Record)
_KEY = re.compile(r"[0-9a-f]{32}")
_TRIES = 3

CORRUPT = "corrupt"
"""Where in a result folder is what was set aside."""


def keys_in(folder: Path, prefix: str = "") -> list[str]:
    """The keys that name something in a folder, sorted; other names are not ours."""
    with files.storing(folder):
        names = [path.name for path in files.entries(folder)]
    return [name for name in names if name.startswith(prefix) and _KEY.fullmatch(name)]


def check_key(key: str) -> str:
    """The key itself; ValueError for what can't be one (it becomes a path)."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key")
    return key


class Shelf(Generic[R]):
    """Folders `<root>/<name>/<key>/`, each with a `record.json` that vouches for its files."""

    def __init__(self, root: Path, name: str, model: type[R]) -> None:
        self.root = root
        self.place = root / name
        self.model = model

    def folder(self, key: str) -> Path:
        """Where a key's files are, or would be."""
        return self.place / check_key(key)

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of the folders that are there, good or not; reads no file."""
        return keys_in(self.place, prefix)

    def find(self, key: str) -> R | None:
        """The verified record, or None.

        Sizes and digests of all files are checked. What isn't as it was written is named in a
        warning and set aside into `corrupt/`, so that it's made again.

        Raises:
            StoreError: it can't be read, or a newer version wrote it.
        """
        folder = self.folder(key)
        with files.storing(folder):
            try:
                return self._verified(folder)
            except FileNotFoundError:
                if not folder.exists():
                    return None
                reason = f"{RECORD} is missing"
            except CorruptError as error:
                reason = str(error)
        set_aside(self.root, folder, f"{self.model.LABEL} {key}", reason)
        return None

    def records(self) -> Iterator[R]:
        """The records of all good folders, by key."""
        for key in self.keys():
            record = self.find(key)
            if record is not None:
                yield record

    def publish(self, identity: Identity, build: Callable[[Path], None], **fields: Any) -> R:
        """Make a folder and put it in place whole; if somebody was faster, theirs stays.

        Args:
            identity: its key becomes the folder's name.
            build: writes the files into the folder that it's given.
            fields: what the record states beside identity and files.

        Returns:
            The record that is in place now.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        key = identity.key
        draft = self.root / "tmp" / unique_name()
        with files.storing(self.root):
            try:
                draft.mkdir(parents=True)
                build(draft)
                record = self.model.seal(identity, describe(draft), **fields)
                files.write_bytes(draft / RECORD, record.to_bytes())
                self.place.mkdir(exist_ok=True)
                for _ in range(_TRIES):
                    if files.publish_folder(draft, self.folder(key)):
                        return record
                    other = self.find(key)
                    if other is not None:
                        return other
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(
            f"{self.model.LABEL} {key} could not be put in place: {self.folder(key)} is taken",
            "move that folder away, then run again",
        )

    def remove(self, key: str) -> None:
        """Delete a folder; nobody sees it half-deleted."""
        with files.storing(self.root):
            files.remove_tree(self.folder(key), self.root / "tmp", unique_name())

    def _verified(self, folder: Path) -> R:
        try:
            value = files.read_json(folder / RECORD)
        except NotADirectoryError as error:
            raise CorruptError("it is no folder") from error
        except ValueError as error:
            raise CorruptError(f"{RECORD}: {error}") from error
        try:
            record = self.model.parse(value)
        except CorruptError as error:
            raise CorruptError(f"{RECORD}: {error}") from error
        if record.key != folder.name:
            raise CorruptError(f"{RECORD}: it is of {record.key}")
        for name, facts in record.files.items():
            check_file(folder, name, facts)
        return record


def describe(folder: Path) -> dict[str, FileFacts]:
    """Size and digest of the files that a record vouches for, by name."""
    return {
        path.name: FileFacts(size=path.stat().st_size, blake2b=files.file_digest(path))
        for path in sorted(folder.iterdir())
        if path.name not in UNLISTED
    }


def check_file(folder: Path, name: str, facts: FileFacts) -> None:
    """Raise CorruptError unless the file is there as described."""
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise CorruptError(f"{name} is missing")
    size = path.stat().st_size
    if size != facts.size:
        raise CorruptError(f"{name} has {size} bytes instead of {facts.size}")
    if files.file_digest(path) != facts.blake2b:
        raise CorruptError(f"{name} has another content than was written")


def set_aside(root: Path, path: Path, what: str, reason: str, stem: str = "") -> None:
    """Move something corrupted into `corrupt/<stem>-<n>` and say so; if it can't be, say that.

    Args:
        stem: the path's own name by default.
    """
    try:
        (root / CORRUPT).mkdir(exist_ok=True)
        target = files.move_to_free_name(path, root / CORRUPT, stem or path.name)
    except OSError as error:
        log.warning("%s is corrupted (%s) and can't be set aside: %s", what, reason, error)
        return
    if target is not None:
        log.warning("%s is corrupted (%s); set aside as %s", what, reason, target)
