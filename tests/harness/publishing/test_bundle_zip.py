"""`publishing.archive`: which zips are read, and why others aren't."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metabench.errors import EvidenceError
from metabench.publishing import archive
from metabench.publishing.archive import DATE, archive_bytes, open_bundle
from metabench.publishing.published import SUBMISSION

KEY = "0123456789abcdef" * 2
GOOD = {
    "study.json": b'{"rows": []}',
    SUBMISSION: b"{}",
    f"evidence/cells/{KEY}.json": b"{}" * 40,
    f"evidence/cells/{KEY}.parquet": bytes(range(256)),
    f"evidence/queries/{KEY}.parquet": b"PAR1",
}
Open = Callable[[bytes], dict[str, bytes]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def read(data: bytes) -> dict[str, bytes]:
        (tmp_path / "b.zip").write_bytes(data)
        return open_bundle(tmp_path / "b.zip").content

    return read


def zipped(
    extra: dict[str, bytes] | None = None,
    change: Callable[[zipfile.ZipInfo], object] = lambda info: None,
    *,
    comment: bytes = b"",
) -> bytes:
    """The good files and others, with `change` made to the entry of each other one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in {**GOOD, **(extra or {})}.items():
            info = zipfile.ZipInfo(name, DATE)
            info.filename = name  # which ZipInfo's own constructor would mend
            info.compress_type = zipfile.ZIP_DEFLATED
            if name in (extra or {}):
                change(info)
            out.writestr(info, data)
        out.comment = comment
    return buffer.getvalue()


def test_what_is_written_is_read(opened: Open) -> None:
    assert opened(archive_bytes(GOOD)) == GOOD
    assert opened(zipped()) == GOOD


def test_other_readers_read_it_too(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(archive_bytes(GOOD))
    with zipfile.ZipFile(tmp_path / "b.zip") as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == GOOD


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "evidence/../x.json",
        "evidence/cells/../../x.json",
        "/etc/x.json",
        "//x.json",
        "C:/x.json",
        "C:x.json",
        "evidence\\cells\\x.json",
        "..\\x.json",
        "x.json\0.parquet",
        "ｅvidence/cells/" + KEY + ".json",
        "evidence/cells/" + KEY.upper() + ".json",
        "evidence/cells/" + KEY + ".json.",
        "evidence/cells/" + KEY + ".pkl",
        "evidence/reproduced/" + KEY + ".json",
        "evidence/",
        "evidence/cells/a/" + KEY + ".json",
        ".hidden.json",
        " x.json",
        "study\u202enosj.json",
        "CON",
        "inner.zip",
        "x.csv",
        "",
    ],
)
def test_names_that_are_not_of_the_layout(opened: Open, name: str, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError):
        opened(zipped({name: b"x"}))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.zip"]


def test_a_name_that_is_written_is_checked_too() -> None:
    with pytest.raises(EvidenceError, match="is no name of a file in a bundle"):
        archive_bytes({"../x.json": b""})


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_stands_there_twice(opened: Open) -> None:
    buffer = io.BytesIO(archive_bytes(GOOD))
    with zipfile.ZipFile(buffer, "a") as out:
        out.writestr(zipfile.ZipInfo("study.json", DATE), b"other")
    with pytest.raises(EvidenceError, match="twice"):
        opened(buffer.getvalue())
    with pytest.raises(EvidenceError, match="twice"):
        opened(zipped({"STUDY.json": b"{}"}))


def as_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def as_pipe(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFIFO | 0o777) << 16


def with_extra(info: zipfile.ZipInfo) -> None:
    info.extra = struct.pack("<HH", 0x7075, 0)


def with_comment(info: zipfile.ZipInfo) -> None:
    info.comment = b"hello"


def by_lzma(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_LZMA


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (as_link, "is a link"),
        (as_pipe, "is no plain file"),
        (with_extra, "notes of its own"),
        (with_comment, "notes of its own"),
        (by_lzma, "has the flags|is packed by method 14"),
    ],
)
def test_entries_that_are_more_than_files(
    opened: Open, change: Callable[[zipfile.ZipInfo], object], why: str
) -> None:
    extra = f"evidence/queries/{KEY[::-1]}.parquet"
    with pytest.raises(EvidenceError, match=why):
        opened(zipped({extra: b"target"}, change))


def test_an_encrypted_file(opened: Open) -> None:
    data = bytearray(archive_bytes(GOOD))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    data[6] |= 1
    with pytest.raises(EvidenceError, match="is encrypted"):
        opened(bytes(data))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no zip file"),
        (b"PK", "no zip file"),
        (b"#!/bin/sh\n" + archive_bytes(GOOD), "no zip file"),
        (archive_bytes(GOOD) + b"more", "doesn't end as a zip"),
        (zipped(comment=b"hello"), "doesn't end as a zip"),
        (archive_bytes(GOOD)[:-30], "doesn't end as a zip"),
    ],
)
def test_what_stands_around_a_zip(opened: Open, data: bytes, why: str) -> None:
    with pytest.raises(EvidenceError, match=why):
        opened(data)


def test_a_bomb_is_refused_before_it_is_unpacked(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("it was unpacked")

    bomb = zipped({f"evidence/cells/{KEY[::-1]}.parquet": bytes(8 * 2**20)})
    assert len(bomb) < 20_000
    monkeypatch.setattr(archive, "_unpacked", never)
    with pytest.raises(EvidenceError, match="over 100 times what it takes"):
        opened(bomb)


def test_a_file_that_is_larger_than_it_declares(opened: Open) -> None:
    """Both accounts of its size are changed; the checksum is that of what it declares."""
    import zlib

    data = bytearray(zipped())
    name = f"evidence/cells/{KEY}.parquet".encode()
    declared = GOOD[name.decode()][:10]
    sums = struct.pack("<L", zlib.crc32(declared))
    local, listed = data.index(name) - 30, data.rindex(name) - 46
    data[local + 14 : local + 18] = data[listed + 16 : listed + 20] = sums
    data[local + 22 : local + 26] = data[listed + 24 : listed + 28] = struct.pack("<L", 10)
    with pytest.raises(EvidenceError, match="holds more than it declares"):
        opened(bytes(data))


def test_files_that_overlap(opened: Open) -> None:
    """As in the densest bombs: many entries of the list lead to one content."""
    data = bytearray(archive_bytes(GOOD))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = bytes(4)
    with pytest.raises(EvidenceError, match="overlaps"):
        opened(bytes(data))


def test_too_many_files_and_too_many_bytes(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    good = archive_bytes(GOOD)
    monkeypatch.setattr(archive, "MOST_ENTRIES", 4)
    with pytest.raises(EvidenceError, match="lists 5 files"):
        opened(good)
    monkeypatch.setattr(archive, "MOST_ENTRIES", 5)
    monkeypatch.setattr(archive, "MOST_UNPACKED", 300)
    with pytest.raises(EvidenceError, match="it unpacks to more"):
        opened(good)
    monkeypatch.setattr(archive, "MOST_ARCHIVE", 100)
    with pytest.raises(EvidenceError, match="it is larger than"):
        opened(good)


def test_a_bundle_is_of_one_table(opened: Open) -> None:
    with pytest.raises(EvidenceError, match="2 tables"):
        opened(archive_bytes({**GOOD, "other.json": b"{}"}))
    with pytest.raises(EvidenceError, match="1 tables beside"):
        opened(archive_bytes({n: d for n, d in GOOD.items() if n != SUBMISSION}))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is no file"):
        open_bundle(tmp_path)
    with pytest.raises(EvidenceError, match="is no file"):
        open_bundle(tmp_path / "missing.zip")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, len(archive_bytes(GOOD)) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_zip_is_noticed_or_changes_no_content(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    data = bytearray(archive_bytes(GOOD))
    data[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.zip"
    path.write_bytes(data)
    with contextlib.suppress(EvidenceError):
        assert open_bundle(path).content == GOOD
