"""Bundles as one zip file: written so that the same content gives the same bytes, read as a threat.

A zip says everything twice, before each file's content and in the list at the end, and readers
differ in what they believe. Here only one form is taken, the one that is written here: files back
to back from the first byte, then the list, nothing between and nothing behind, both accounts the
same. So nothing overlaps, nothing is hidden, and flags, links, folders and extra fields need no
reading between the lines. All is read into memory within limits; nothing is unpacked onto a disk.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from metabench.errors import EvidenceError
from metabench.publishing.files import MOST_BYTES, GivenFiles
from metabench.publishing.published import SUBMISSION

MOST_ARCHIVE = 64 * 2**20
"""Bytes of a bundle."""
MOST_ENTRIES = 20_000
MOST_UNPACKED = 256 * 2**20
"""Bytes of all files in it."""
MOST_RATIO = 100
"""Of a file's size to what it takes in the bundle, from `SMALL` bytes on."""
SMALL = 2**16
DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file: the earliest that a zip can say."""

_DIGEST = "[0-9a-f]{32}"
_NAMES = re.compile(
    rf"[A-Za-z0-9_%~-][A-Za-z0-9 _%~-]{{0,200}}\.json"
    rf"|evidence/cells/{_DIGEST}\.(json|parquet)"
    rf"|evidence/queries/{_DIGEST}\.parquet"
)
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_AGAIN = "make it anew with metabench bundle"


def archive_bytes(files: Mapping[str, bytes]) -> bytes:
    """The bundle of these files.

    Raises:
        EvidenceError: a name that no bundle may hold.
    """
    for name in files:
        _check_name(name)
    return zip_bytes(files)


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """The zip of these files; the same files give the same bytes (with one zlib)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name], compresslevel=9)
    return buffer.getvalue()


def open_bundle(path: Path) -> GivenFiles:
    """The files of a bundle, in memory.

    Raises:
        EvidenceError: it's no bundle, or not one that may be read: too large, too many files, one
            that unpacks to too much, a name that isn't of the layout, a link, an encrypted file.
    """
    data = _read(path)
    _check_end(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            _check_places(data, entries, archive.start_dir)
            content = {entry.filename: _unpacked(data, entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise _refused(f"it can't be unpacked: {error}") from error
    except (zlib.error, OSError, struct.error) as error:
        raise _refused(f"it can't be unpacked: {error}") from error
    tables = [name for name in content if "/" not in name and name != SUBMISSION]
    if SUBMISSION not in content or len(tables) != 1:
        raise _refused(f"it has {len(tables)} tables beside {SUBMISSION}; there should be one")
    return GivenFiles(content, path.name)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise EvidenceError(f"{path} is no file")
        if path.stat().st_size > MOST_ARCHIVE:
            raise _refused(f"it is larger than {MOST_ARCHIVE // 2**20} MiB")
        with path.open("rb") as file:
            data = file.read(MOST_ARCHIVE + 1)
    except OSError as error:
        raise EvidenceError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MOST_ARCHIVE:
        raise _refused(f"it is larger than {MOST_ARCHIVE // 2**20} MiB")
    return data


def _check_end(data: bytes) -> None:
    """The last bytes must be the end of a zip without a comment: before anything is listed."""
    if len(data) < _END.size or data[:4] != b"PK\x03\x04":
        raise _refused("it is no zip file")
    mark, disk, first, here, all_, size, start, comment = _END.unpack(data[-_END.size :])
    if mark != b"PK\x05\x06" or comment or disk or first:
        raise _refused("it doesn't end as a zip file of one part without a comment")
    if here != all_ or all_ > MOST_ENTRIES:
        raise _refused(f"it lists {all_} files; {MOST_ENTRIES} at the most were expected")
    if start + size + _END.size != len(data) or size > MOST_ENTRIES * 512:
        raise _refused("its list of files isn't where it says")


def _check_entries(entries: Sequence[zipfile.ZipInfo]) -> None:
    """All that is said of the files, before one of them is unpacked."""
    seen: set[str] = set()
    for entry in entries:
        _check_name(entry.orig_filename)
        folded = entry.filename.casefold()
        if entry.filename != entry.orig_filename or folded in seen:
            raise _refused(f"{entry.filename} stands in it twice")
        seen.add(folded)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            what = "a link" if kind == stat.S_IFLNK else "no plain file"
            raise _refused(f"{entry.filename} is {what}")
        if entry.flag_bits:
            what = "is encrypted" if entry.flag_bits & 1 else f"has the flags {entry.flag_bits:#x}"
            raise _refused(f"{entry.filename} {what}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(f"{entry.filename} is packed by method {entry.compress_type}")
        if entry.extra or entry.comment or entry.date_time != DATE:
            raise _refused(f"{entry.filename} has a date or notes of its own")
        _check_size(entry)
    if sum(entry.file_size for entry in entries) > MOST_UNPACKED:
        raise _refused(f"it unpacks to more than {MOST_UNPACKED // 2**20} MiB")


def _check_size(entry: zipfile.ZipInfo) -> None:
    if entry.file_size > MOST_BYTES:
        raise _refused(f"{entry.filename} unpacks to more than {MOST_BYTES // 2**20} MiB")
    if entry.file_size > max(SMALL, MOST_RATIO * entry.compress_size):
        raise _refused(f"{entry.filename} unpacks to over {MOST_RATIO} times what it takes")


def _check_places(data: bytes, entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Back to back from the first byte to the list, and both accounts of each the same."""
    at = 0
    for entry in entries:
        if entry.header_offset != at:
            raise _refused(
                f"{entry.filename} overlaps with another file, or something lies between"
            )
        mark, version, flags, method, time, date, crc, packed, size, name, extra = _LOCAL.unpack(
            data[at : at + _LOCAL.size]
        )
        said = (mark, flags, method, crc, packed, size, extra, version, time, date)
        listed = (
            *(b"PK\x03\x04", entry.flag_bits, entry.compress_type, entry.CRC),
            *(entry.compress_size, entry.file_size, 0, entry.extract_version),
            *(0, 1 << 5 | 1),  # midnight of DATE
        )
        at += _LOCAL.size
        if said != listed or data[at : at + name] != entry.filename.encode():
            raise _refused(f"{entry.filename} is listed otherwise than it stands there")
        at += name + packed
    if at != end:
        raise _refused("something lies between its files and their list")


def _unpacked(data: bytes, entry: zipfile.ZipInfo) -> bytes:
    """What a file holds, if that is what is declared, to the last byte; no more is unpacked."""
    at = entry.header_offset + _LOCAL.size + len(entry.filename)
    content = data[at : at + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
        content = unpacking.decompress(content, entry.file_size + 1)
        if not unpacking.eof or unpacking.unused_data:
            raise _refused(f"{entry.filename} holds more than it declares, or is cut short")
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise _refused(f"{entry.filename} has another size or checksum than it declares")
    return content


def _check_name(name: str) -> None:
    if not _NAMES.fullmatch(name):
        raise EvidenceError(f"{name!r} is no name of a file in a bundle", _AGAIN)


def _refused(why: str) -> EvidenceError:
    return EvidenceError(f"this bundle isn't read: {why}", _AGAIN)
