"""Zip archives that nobody vouches for."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.data.archives import ZipLimits, open_zip
from metabench.errors import DataCorruptError

LIMITS = ZipLimits(entries=10, entry_bytes=1000, total_bytes=3000)


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "archive.zip"
        path.write_bytes(data)
        return path

    return write


def read_all(path: Path) -> list[bytes]:
    with open_zip(path, LIMITS) as archive:
        return [archive.read(name) for name in archive.names()]


def refusal(path: Path) -> str:
    with pytest.raises(DataCorruptError) as error:
        read_all(path)
    assert str(path) in error.value.message
    return error.value.message


def test_files_are_read_in_the_order_of_their_names(written: Callable[[bytes], Path]) -> None:
    path = written(zip_bytes({"b/2.png": b"two", "a/": b"", "a/1.png": b"one"}))
    with open_zip(path, LIMITS) as archive:
        assert archive.names() == ["a/1.png", "b/2.png"]
    assert read_all(path) == [b"one", b"two"]


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/passwd", "C:/out", "..\\out", "a\\..\\out", "..", "//server/a"],
)
def test_a_path_that_leaves_the_folder_is_refused(
    written: Callable[[bytes], Path], name: str
) -> None:
    assert "leaves the folder" in refusal(written(zip_bytes({"fine": b"", name: b"out"})))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(written: Callable[[bytes], Path], kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.create_system = 3
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert "'link' is a link or a device" in refusal(written(buffer.getvalue()))


def test_too_many_entries_are_refused(written: Callable[[bytes], Path]) -> None:
    assert "11 entries" in refusal(written(zip_bytes({str(i): b"" for i in range(11)})))


def test_a_long_list_of_entries_is_refused_before_it_is_read(
    written: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("zipfile saw it")

    path = written(zip_bytes({f"{i:0200}": b"" for i in range(30)}))
    monkeypatch.setattr(zipfile, "ZipFile", never)
    assert "list of entries" in refusal(path)


def test_one_file_over_the_limit_is_refused(written: Callable[[bytes], Path]) -> None:
    assert "1001 bytes unpacked" in refusal(written(zip_bytes({"bomb": bytes(1001)})))


def test_all_files_over_the_limit_are_refused(written: Callable[[bytes], Path]) -> None:
    entries = {str(i): bytes(1000) for i in range(4)}
    assert "unpacked it has 4000 bytes" in refusal(written(zip_bytes(entries)))


def test_a_file_that_is_longer_than_it_says_is_refused(written: Callable[[bytes], Path]) -> None:
    data = zip_bytes({"liar": bytes(100_000)})
    size = struct.pack("<L", 100_000)
    assert data.count(size) == 2  # of the file's own header, and of the list
    assert "'liar'" in refusal(written(data.replace(size, struct.pack("<L", 10))))


def test_names_that_differ_in_case_only_are_refused(written: Callable[[bytes], Path]) -> None:
    assert "twice" in refusal(written(zip_bytes({"File": b"1", "file": b"2"})))


def test_an_encrypted_file_is_refused(written: Callable[[bytes], Path]) -> None:
    data = bytearray(zip_bytes({"secret": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(written(bytes(data)))


def test_a_large_archives_format_is_refused(written: Callable[[bytes], Path]) -> None:
    data = zip_bytes({"a": b"x"})
    end = data.index(b"PK\x05\x06")
    locator = b"PK\x06\x07" + bytes(16)
    assert "64-bit" in refusal(written(data[:end] + locator + data[end:]))


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.zip")


GOOD = zip_bytes({"a/1.png": b"one" * 50, "a/2.png": bytes(range(256)), "b/3.png": b"three"})


@given(st.integers(0, len(GOOD) - 1))
def test_a_cut_archive_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.zip"
    path.write_bytes(GOOD[:length])
    refusal(path)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_damaged_archive_gives_its_content_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    data = bytearray(GOOD)
    data[place] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(data)
    content = [b"one" * 50, bytes(range(256)), b"three"]
    with suppress(DataCorruptError):
        assert all(read in content for read in read_all(path))
