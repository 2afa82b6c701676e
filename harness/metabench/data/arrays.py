"""Caches of arrays: memory-mapped .npy files beside a manifest that holds their digests.

A cache is a folder. Its manifest says how the arrays were made, their sizes and digests, and facts
such as class names; its own digest stands on its first line. So a truncated file, a flipped bit and
a cache of another version are all noticed, and the cache is built anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from metabench.data.atomic import building, cannot_write, flush_folder, publish
from metabench.data.folder import CACHE, DataHome
from metabench.episodes.digest import DIGEST_BYTES, canonical_json, digest_bytes
from metabench.errors import DataCorruptError, DataMissingError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_checked: set[tuple[str, int, int, int]] = set()
"""Files whose digest this process has compared: path, size, time of change, inode."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name, and facts about them.

    Attributes:
        arrays: read-only memory maps where they come from a cache.
        facts: whatever JSON can hold, such as class names.
    """

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def content_digest(
    names: Sequence[str], offsets: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]
) -> str:
    """The identity of a data set: its class names, how many items each has, and the items.

    Args:
        names: of the C classes, in the order of their items.
        offsets: (C + 1,) class c owns items offsets[c] to offsets[c + 1].
        arrays: by name; numbers and booleans, little-endian or not makes no difference.

    Returns:
        32 hexadecimal digits (BLAKE2b-128), the same on every machine.
    """
    parts = [canonical_json({"names": list(names), "offsets": [int(o) for o in offsets]})]
    for name in sorted(arrays):
        array = arrays[name]
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        kind = plain.dtype.kind + str(plain.dtype.itemsize)
        parts.append(canonical_json({"name": name, "shape": list(plain.shape), "kind": kind}))
        parts.append(plain.tobytes())
    return digest_bytes(*parts).hex()


@dataclass(frozen=True)
class ArrayCache:
    """One cache of a data set, wherever it lies.

    Attributes:
        home: the data set's places.
        key: the folder's name, such as `images-28`.
        made_by: JSON that says how the arrays are made; where it differs, the cache is stale.
    """

    home: DataHome
    key: str
    made_by: Mapping[str, Any]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where it may lie."""
        return tuple(place / CACHE / self.key for place in self.home.places)

    def present(self) -> bool:
        """Whether one is there that looks whole: the manifest and the sizes only."""
        return any(_is_good(path, self.made_by, _sizes) for path in self.paths)

    def find(self) -> Arrays | None:
        """The cache, every byte compared once a process; None where no good one is there.

        A corrupt one is named in a warning.
        """
        for path in self.paths:
            try:
                return _load(path, self.made_by)
            except DataMissingError:
                continue
            except DataCorruptError as error:
                log.warning("%s; it is built anew", error.message)
        return None

    def get(self, build: Callable[[], Arrays]) -> Arrays:
        """The cache, built first where there is no good one.

        Raises:
            UsageError: it cannot be written.
        """
        found = self.find()
        return found if found is not None else self.replace(build())

    def replace(self, built: Arrays) -> Arrays:
        """Write `built` to the disk; returns it as read-only memory maps.

        Raises:
            UsageError: it cannot be written.
        """
        path = self.home.place_to_write() / CACHE / self.key
        with building(path.parent) as folder:
            try:
                _write(folder, built, self.made_by)
            except OSError as error:
                raise cannot_write(path, error) from error
            publish(folder, path, lambda there: _is_good(there, self.made_by, _load))
        try:
            return _load(path, self.made_by)
        except DataMissingError:  # removed by another process meanwhile
            return built

    def verify(self) -> Arrays:
        """Compare every byte on the disk with the manifest, again if it was done before.

        Raises:
            DataCorruptError: names what differs.
            DataMissingError: there is none.
        """
        _checked.clear()
        for path in self.paths:
            try:
                return _load(path, self.made_by)
            except DataMissingError:
                continue
        raise _missing(self.paths[0])


def _is_good(
    path: Path, made_by: Mapping[str, Any], read: Callable[[Path, Mapping[str, Any]], object]
) -> bool:
    try:
        read(path, made_by)
    except (DataMissingError, DataCorruptError):
        return False
    return True


def _write(folder: Path, built: Arrays, made_by: Mapping[str, Any]) -> None:
    """All files of a cache, durably; the manifest last."""
    files: dict[str, object] = {}
    for name, array in built.arrays.items():
        if not _NAME.fullmatch(name) or array.dtype.hasobject or not array.size:
            raise ValueError(f"{name!r}, {array.dtype} {array.shape}, cannot be memory-mapped")
        with open(folder / f"{name}.npy", "wb") as file:
            writer = _Digesting(file)
            np.lib.format.write_array(writer, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        files[name] = {"bytes": writer.size, "blake2b": writer.state.hexdigest()}
    body = canonical_json(
        {"format": FORMAT, "made_by": dict(made_by), "arrays": files, "facts": dict(built.facts)}
    )
    with open(folder / MANIFEST, "wb") as file:
        file.write(digest_bytes(body).hex().encode() + b"\n" + body + b"\n")
        file.flush()
        os.fsync(file.fileno())
    flush_folder(folder)


class _Digesting:
    """A binary file that takes size and digest of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.state = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def write(self, data: bytes) -> int:
        self.state.update(data)
        self.size += len(data)
        return self.file.write(data)


def _manifest(path: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a cache.

    Raises:
        DataMissingError: none, or of arrays that were made in another way.
        DataCorruptError: it is not what was written.
    """
    try:
        head, _, rest = (path / MANIFEST).read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except OSError as error:
        raise _corrupt(path, MANIFEST, f"cannot be read ({error.strerror})") from error
    body = rest.removesuffix(b"\n")
    if head != digest_bytes(body).hex().encode():
        raise _corrupt(path, MANIFEST, "does not have the digest on its first line")
    manifest: dict[str, Any] = json.loads(body)
    if manifest["format"] != FORMAT or canonical_json(manifest["made_by"]) != canonical_json(
        dict(made_by)
    ):
        raise _missing(path)
    return manifest


def _sizes(path: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, after a look at the sizes of the files."""
    manifest = _manifest(path, made_by)
    for name, facts in manifest["arrays"].items():
        file = path / f"{name}.npy"
        have = file.stat().st_size if file.exists() else None
        if have != facts["bytes"]:
            said = "is missing" if have is None else f"has {have} bytes"
            raise _corrupt(path, file.name, f"{said}, its manifest says {facts['bytes']}")
    return manifest


def _load(path: Path, made_by: Mapping[str, Any]) -> Arrays:
    """The arrays as read-only memory maps, after a look at every byte (once a process)."""
    manifest = _sizes(path, made_by)
    arrays: dict[str, NDArray[Any]] = {}
    for name, facts in manifest["arrays"].items():
        file = path / f"{name}.npy"
        try:
            _compare(path, file, facts["blake2b"])
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _corrupt(path, file.name, f"cannot be read ({error})") from error
    return Arrays(arrays, manifest["facts"])


def _compare(path: Path, file: Path, expected: str) -> None:
    facts = file.stat()
    seen = (str(file), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    if seen in _checked:
        return
    with open(file, "rb") as stream:
        state = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
    if state.hexdigest() != expected:
        raise _corrupt(path, file.name, "is not what was written (its digest differs)")
    _checked.add(seen)


def _missing(path: Path) -> DataMissingError:
    return DataMissingError(f"there is no cache in {path}", "metabench data prepare builds it")


def _corrupt(path: Path, file: str, what: str) -> DataCorruptError:
    return DataCorruptError(
        f"the cache {path} is corrupt: {file} {what}", "metabench data prepare builds it anew"
    )
