"""Files on disk: durable writes, atomic replacing and publishing, digests, errors in one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metabench.episodes.digest import DIGEST_BYTES
from metabench.errors import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the system says about files under `path` into a StoreError that can be acted on."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise StoreError(
                f"the disk of {path} is full",
                "free some space, or choose another result folder with --out",
            ) from error
        if error.errno in FORBIDDEN:
            raise StoreError(
                f"no permission to use {where}: {reason}",
                "mend the permissions, or choose another result folder with --out",
            ) from error
        raise StoreError(
            f"cannot use {where}: {reason}",
            "mend the result folder, or choose another one with --out",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_bytes(path: Path, data: bytes, unique: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part.

    Args:
        path: the file; its folder exists.
        data: the whole content.
        unique: a name that no other writer has, for the file before it is moved into place.
    """
    draft = path.with_name(f".{path.name}.{unique}")
    try:
        write_bytes(draft, data)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """One text for each value: sorted keys, two spaces, UTF-8, a newline at the end, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def write_json(path: Path, value: Any) -> None:
    """Write a new file of deterministic JSON."""
    write_bytes(path, json_bytes(value))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is not UTF-8, not JSON, or holds a number that JSON has not.
        OSError: it cannot be read.
    """
    return json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def bytes_digest(data: bytes) -> str:
    """BLAKE2b-128 of some bytes, 32 hexadecimal digits; the same as `file_digest` of a file."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b-128 of a file's content, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)
        ).hexdigest()


def fsync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where the system can be asked to."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no fsync of folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


def publish_folder(draft: Path, target: Path) -> bool:
    """Move a finished folder into place; False if somebody else's is there already.

    A folder appears whole or not at all, whenever the process or the machine is stopped.
    """
    sync_tree(draft)
    try:
        os.rename(draft, target)
    except OSError as error:
        if error.errno in TAKEN or (error.errno == errno.ENOTDIR and target.is_file()):
            return False
        raise
    fsync_folder(target.parent)
    return True


def move_to_free_name(path: Path, folder: Path, stem: str) -> Path | None:
    """Move `path` to `folder/<stem>-<n>` with the first free n; None if it is gone already."""
    n = 1
    while True:
        target = folder / f"{stem}-{n}"
        try:
            if not target.exists():
                os.rename(path, target)
                return target
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        n += 1


def remove_tree(path: Path, bin_folder: Path, unique: str) -> None:
    """Delete a file or folder so that nobody meets it half-deleted: it is moved away first."""
    target = bin_folder / unique
    bin_folder.mkdir(exist_ok=True)
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return
    delete(target)


def delete(path: Path) -> None:
    """Delete a file or a folder that nobody else looks at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tree_bytes(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; what goes meanwhile counts nothing."""
    total = 0
    if not path.is_dir():
        with suppress(FileNotFoundError):
            total = path.lstat().st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing if it isn't there, or goes just now."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
