"""Folders that appear whole or not at all: build beside, wait for the disk, rename.

No locks: two processes may build the same folder at once; the first to rename wins and the other
discards its own. What a killed process left behind is swept by the next one that builds there.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from metabench.episodes.digest import digest_bytes
from metabench.errors import UsageError

_PREFIX = ".building"
_FOREIGN_SECONDS = 24 * 3600
"""After so long a leftover of another machine counts as dead; whether it is can't be asked."""
_ATTEMPTS = 10


@contextmanager
def building(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent` to build in; whatever is still there afterwards is removed.

    Raises:
        UsageError: it cannot be made, or writing in the block failed (permissions, a full disk).
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        temporary = _beside(parent)
        temporary.mkdir()
    except OSError as error:
        raise cannot_write(parent, error) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(built: Path, target: Path, is_good: Callable[[Path], bool]) -> None:
    """Rename the folder `built` to `target`, on the same disk.

    Where `target` exists and `is_good`, somebody else was first and `built` is left alone; where it
    is not good, it is replaced.

    Raises:
        UsageError: it cannot be renamed.
    """
    try:
        for _ in range(_ATTEMPTS):
            try:
                os.rename(built, target)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                if is_good(target):
                    return
                remove_tree(target)
            else:
                flush_folder(target.parent)
                return
    except OSError as error:
        raise cannot_write(target, error) from error
    raise UsageError(
        f"{target} could not be replaced: something else keeps writing it",
        "see which process that is, end it, and try again",
    )


def sweep(parent: Path) -> int:
    """Remove what dead processes left in `parent`; returns how many folders."""
    removed = 0
    if parent.is_dir():
        for path in sorted(parent.glob(f"{_PREFIX}-*")):
            if _is_dead(path):
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
    return removed


def remove_tree(path: Path) -> None:
    """Remove a file or a folder so that no reader finds a part of it under its name."""
    aside = _beside(path.parent)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def flush_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, where the system can promise that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> UsageError:
    """What the system said about writing below `path`, as an error that can be acted on."""
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
        return UsageError(
            f"the disk of {path} is full",
            "free some space, or choose another data folder with -d/--data-dir",
        )
    return UsageError(
        f"cannot write {path}: {error.strerror or error}",
        "mend its permissions, or choose another data folder with -d/--data-dir",
    )


def _beside(parent: Path) -> Path:
    """A name that no other process uses, and that tells whose it is."""
    return parent / f"{_PREFIX}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _host() -> str:
    return digest_bytes(socket.gethostname().encode()).hex()[:8]


def _is_dead(path: Path) -> bool:
    """Whether the process that made this folder is gone."""
    try:
        _, host, pid, _ = path.name.split("-")
        made = path.stat().st_mtime
        if host != _host():
            return time.time() - made > _FOREIGN_SECONDS
        process = psutil.Process(int(pid))
        # A younger process with the same number is another one.
        return bool(process.create_time() > made + 1 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except (ValueError, FileNotFoundError, psutil.Error):
        return False
