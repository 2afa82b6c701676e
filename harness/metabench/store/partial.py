"""Training state to resume from: whoever works on a cell keeps it in a folder of their own.

`partial/<key>/<host>-<process>-<unique>/` holds a `heartbeat` and the last checkpoint. A process
that starts on the cell claims a stale folder by renaming it to a name of its own, which only one
can do; if there is none, it starts a new one, and whoever finishes first publishes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from metabench.store import files
from metabench.store.machine import owner_alive, unique_name
from metabench.store.shelf import CORRUPT, check_key

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("metabench.store")

STALE_AFTER_S = 120.0
"""A heartbeat older than this, in seconds, is taken for that of a process that was lost."""

LIVING_FACTOR = 30
"""How much longer a process of this host that still runs may be quiet."""

BEAT_EVERY_S = 5.0
HEARTBEAT = "heartbeat"
RELEASED = "released"
_CHECKPOINT = re.compile(r"[0-9]{8,}-[0-9a-f]{32}\.safetensors")
_KEPT = "kept-{}-{}.safetensors"
"""What a phase made: the digests of its name and of the content."""


class Partial:
    """The unfinished training of one cell, or of one shared phase, by this process.

    As a context it is released at the end, so that the next one need not wait until it is stale.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._beaten = time.monotonic()

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the last checkpoint; whenever the process dies, the old or the new one is there.

        Args:
            step: steps done; stands in the meta data that `load` returns.
            tensors: all that training goes on from, by name.
            meta: JSON-like values beside them.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        from metabench.store.tensors import tensor_bytes

        data = tensor_bytes(tensors, {**meta, "step": step})
        with files.storing(self.folder):
            try:
                self._write(data)
            except FileNotFoundError:  # taken over while this process slept
                self.folder = _new_folder(self.folder.parent)
                self._write(data)
        self.beat(force=True)

    def _write(self, data: bytes) -> None:
        old = checkpoints(self.folder)
        number = _number(old[0]) + 1 if old else 0
        name = f"{number:08d}-{files.bytes_digest(data)}.safetensors"
        files.replace_bytes(self.folder / name, data, unique_name())
        for path in old:
            path.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The meta data (with `step`) and tensors of the last whole checkpoint, or None."""
        from metabench.store.tensors import parse_tensors

        with files.storing(self.folder):
            for path in checkpoints(self.folder):
                data = path.read_bytes()
                if files.bytes_digest(data) == path.stem.partition("-")[2]:
                    tensors, meta = parse_tensors(data)
                    return meta, tensors
                self._set_aside(path)
        return None

    def keep(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Keep tensors beside the checkpoints, until it is discarded.

        Args:
            name: by which `kept` finds them.
            tensors: by name.
            meta: JSON-like values beside them.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        from metabench.store.tensors import tensor_bytes

        data = tensor_bytes(tensors, meta)
        file = _KEPT.format(_digest_of(name), files.bytes_digest(data))
        with files.storing(self.folder):
            try:
                files.replace_bytes(self.folder / file, data, unique_name())
            except FileNotFoundError:  # taken over while this process slept
                self.folder = _new_folder(self.folder.parent)
                files.replace_bytes(self.folder / file, data, unique_name())
        self.beat(force=True)

    def kept(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The meta data and tensors of that name, or None where they aren't there whole."""
        from metabench.store.tensors import parse_tensors

        with files.storing(self.folder):
            for path in sorted(self.folder.glob(_KEPT.format(_digest_of(name), "*"))):
                data = path.read_bytes()
                if path.name == _KEPT.format(_digest_of(name), files.bytes_digest(data)):
                    tensors, meta = parse_tensors(data)
                    return meta, tensors
                log.warning("%s is corrupted and is made anew", path)
                path.unlink(missing_ok=True)
        return None

    def _set_aside(self, path: Path) -> None:
        """As `shelf.set_aside`; but of one cell only the newest is kept: they may be large."""
        place = self.folder.parents[2] / CORRUPT
        target = place / f"{self.folder.parent.name}-checkpoint.safetensors"
        try:
            place.mkdir(exist_ok=True)
            os.replace(path, target)
        except OSError as error:
            log.warning("checkpoint %s is corrupted and can't be set aside: %s", path, error)
            return
        log.warning("checkpoint %s is corrupted; set aside as %s", path, target)

    def beat(self, force: bool = False) -> None:
        """Say that this process is at work; cheap enough for every step."""
        now = time.monotonic()
        if not force and now - self._beaten < BEAT_EVERY_S:
            return
        self._beaten = now
        try:
            os.utime(self.folder / HEARTBEAT)
        except FileNotFoundError:
            log.debug("%s was taken over", self.folder)

    def release(self) -> None:
        """Leave it to the next one who claims it, at once."""
        with files.storing(self.folder):
            if self.folder.is_dir():
                (self.folder / RELEASED).touch()

    def discard(self) -> None:
        """Delete it: the cell is published."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError as error:
            if error.errno not in files.TAKEN | {errno.ENOENT}:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def claim(root: Path, key: str, stale_after: float = STALE_AFTER_S) -> Partial:
    """Take over the stale training of a key that got furthest, else start anew.

    Raises:
        StoreError: the folder can't be written.
    """
    place = root / "partial" / check_key(key)
    with files.storing(place):
        place.mkdir(parents=True, exist_ok=True)
        stale = [path for path in files.entries(place) if is_stale(path, stale_after)]
        taken = [mine for path in stale if (mine := _take(path)) is not None]
        if not taken:
            return Partial(_new_folder(place))
        furthest = max(taken, key=_progress) if len(taken) > 1 else taken[0]
        for mine in taken:
            if mine != furthest:
                shutil.rmtree(mine, ignore_errors=True)
        return Partial(furthest)


def abandoned(root: Path, key: str) -> list[Path]:
    """The training states of a key in which nobody works any more."""
    return [path for path in files.entries(root / "partial" / check_key(key)) if is_stale(path)]


def is_stale(folder: Path, stale_after: float = STALE_AFTER_S) -> bool:
    """Whether nobody works in it any more: released, its process gone, or no sign of life.

    Ages are differences between times of the file system, which may not be this machine's.
    """
    if not folder.is_dir():
        return False
    alive = owner_alive(folder.name)
    if alive is False or (folder / RELEASED).exists():
        return True
    if alive:  # quiet, perhaps; or another process has its number by now
        stale_after *= LIVING_FACTOR
    heartbeat = folder / HEARTBEAT
    try:
        # Without a heartbeat it has not begun yet, or never will.
        beaten = (heartbeat if heartbeat.exists() else folder).stat().st_mtime
        return _file_time(folder.parent) - beaten > stale_after
    except FileNotFoundError:  # taken over or finished just now
        return False


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in files.entries(folder) if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def _digest_of(name: str) -> str:
    """A phase's name as a part of a file's."""
    return files.bytes_digest(name.encode())


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _progress(folder: Path) -> tuple[int, int]:
    """The phase and the step of the last checkpoint; how many there were says nothing of either."""
    saved = Partial(folder).load()
    return (-1, -1) if saved is None else (int(saved[0].get("phase", 0)), int(saved[0]["step"]))


def _new_folder(place: Path) -> Path:
    folder = place / unique_name()
    folder.mkdir(parents=True)
    (folder / HEARTBEAT).touch()
    return folder


def _take(folder: Path) -> Path | None:
    """Rename a stale folder to a name of this process; None if another was faster."""
    mine = folder.with_name(unique_name())
    try:
        # Before the renaming, so that it is never seen old under the new name.
        (folder / HEARTBEAT).touch()  # there may be none, of a process that died as it began
        (folder / RELEASED).unlink(missing_ok=True)
        os.rename(folder, mine)
    except FileNotFoundError:
        return None
    return mine


def _file_time(folder: Path) -> float:
    """What time it is for the file system."""
    probe = folder / f".{unique_name()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
