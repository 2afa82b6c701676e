"""Reading zip archives that nobody vouches for: bounded, in memory, no path out, no links.

Nothing is unpacked to the disk. What an archive claims is checked before anything is read, and what
it holds cannot be more than it claims.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from metabench.errors import DataCorruptError

_END = struct.Struct("<4s4H2LH")  # end of central directory: signature ... size, offset, comment
_END_MARK = b"PK\x05\x06"
_END64_MARK = b"PK\x06\x07"
_END64_SIZE = 20
_BYTES_AN_ENTRY = 512
"""Of the central directory, on average; the names in a data set are shorter."""


@dataclass(frozen=True)
class ZipLimits:
    """What an archive may hold.

    Attributes:
        entries: files and folders.
        entry_bytes: one file, unpacked.
        total_bytes: all files, unpacked.
    """

    entries: int = 50_000
    entry_bytes: int = 64 * 2**20
    total_bytes: int = 2**30


class ZipReader:
    """The files of a checked archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._entries = {i.filename: i for i in archive.infolist() if not i.is_dir()}

    def names(self) -> list[str]:
        """The files' paths, with forward slashes, sorted."""
        return sorted(self._entries)

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            DataCorruptError: it cannot be unpacked, or its checksum differs.
        """
        entry = self._entries[name]
        try:
            with self._archive.open(entry) as stream:
                data = stream.read(entry.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise _refused(self._path, f"{name!r} cannot be unpacked ({error})") from error
        if len(data) != entry.file_size:
            raise _refused(self._path, f"{name!r} is not as long as it says")
        return data


@contextmanager
def open_zip(path: Path, limits: ZipLimits) -> Iterator[ZipReader]:
    """Open an archive after checking all that it claims.

    Raises:
        DataCorruptError: it is damaged, over a limit, or has an entry that is a link, is encrypted,
            stands twice, or whose path leaves the folder.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            _check_directory(path, file, limits)
            archive = stack.enter_context(zipfile.ZipFile(file))
            _check_entries(path, archive.infolist(), limits)
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
            raise _refused(path, f"it is damaged ({error})") from error
        except OSError as error:
            raise _refused(path, f"it cannot be read ({error.strerror or error})") from error
        yield ZipReader(path, archive)


def _check_directory(path: Path, file: BinaryIO, limits: ZipLimits) -> None:
    """Bound the list of entries before `zipfile` makes an object of each."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END64_SIZE - _END.size - 2**16)  # the comment is under 64 KiB
    file.seek(start)
    tail = file.read()
    place = len(tail) - _END.size
    if place < 0 or tail[place : place + 4] != _END_MARK or tail[-2:] != b"\0\0":
        place = tail.rfind(_END_MARK)
    if place < 0 or len(tail) - place < _END.size:
        raise _refused(path, "it is not a zip archive, or cut off")
    if tail[max(0, place - _END64_SIZE) : place].startswith(_END64_MARK):
        raise _refused(path, "it is of the 64-bit kind, which is larger than any set read here")
    directory = _END.unpack_from(tail, place)[5]
    if directory > limits.entries * _BYTES_AN_ENTRY:
        raise _refused(path, f"its list of entries has {directory} bytes")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], limits: ZipLimits) -> None:
    if len(entries) > limits.entries:
        raise _refused(path, f"it has {len(entries)} entries, over the limit of {limits.entries}")
    total = 0
    seen: set[str] = set()
    for entry in entries:
        fault = _fault(entry, limits)
        name = entry.filename.rstrip("/").casefold()
        if name in seen:
            fault = "stands in it twice"
        if fault:
            raise _refused(path, f"{entry.filename!r} {fault}")
        seen.add(name)
        total += entry.file_size
    if total > limits.total_bytes:
        raise _refused(path, f"unpacked it has {total} bytes, over {limits.total_bytes}")


def _fault(entry: zipfile.ZipInfo, limits: ZipLimits) -> str:
    """What is wrong with an entry, or nothing."""
    # `orig_filename`: `filename` is already cut at a NUL and has its backslashes turned.
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "is a link or a device"
    if (
        not name
        or any(mark in name for mark in ("\\", ":", "\0"))
        or PurePosixPath(name).is_absolute()
        or ".." in PurePosixPath(name).parts
    ):
        return "has a path that leaves the folder"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > limits.entry_bytes:
        return f"has {entry.file_size} bytes unpacked, over the limit of {limits.entry_bytes}"
    return ""


def _refused(path: Path, what: str) -> DataCorruptError:
    return DataCorruptError(f"archive {path} is refused: {what}", "get the archive anew")
