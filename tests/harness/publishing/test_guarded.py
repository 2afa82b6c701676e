"""`publishing.guarded`: Parquet that is a bomb, or no Parquet, and what it does to memory."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metabench.publishing import guarded
from metabench.publishing.guarded import guarded_columns
from metabench.store.parquet import parquet_bytes

linux = pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory elsewhere")


def written(table: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, compression="zstd", store_schema=False, **options)
    return buffer.getvalue()


def test_columns_come_as_they_were_written() -> None:
    columns = {
        "a": np.arange(1000, dtype=np.int32),
        "b": np.arange(1000, dtype=np.uint8),
        "c": np.arange(1000, dtype=np.int64) << 40,
    }
    found = guarded_columns(parquet_bytes(columns), ["a", "b"], ["c", "d"], 1000)
    assert list(found) == ["a", "b", "c"]
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], column)
        assert found[name].dtype == column.dtype


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "size is 0 bytes"),
        (b"PAR1" * 100, "[Cc]orrupt|thrift|footer|magic"),
        (written({"a": [1.5]}), "not of whole numbers"),
        (written({"a": pa.array([1, None])}), "not of whole numbers"),
        (written({"a": ["text"]}), "not of whole numbers"),
        (written({"b": [1]}), "a"),
        (written({"a": [1], "log": ["/home/somebody"]}), "more than was asked for"),
        (written({"a": np.zeros(1001, int)}), "1001 rows, 1000 at the most"),
    ],
)
def test_what_is_no_file_of_ours(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        guarded_columns(data, ["a"], [], 1000)
    good = parquet_bytes({"a": np.arange(3, dtype=np.int32)})
    assert len(guarded_columns(good, ["a"], [], 1000)["a"]) == 3  # and the next is read


@linux
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_bomb_takes_no_more_memory_than_allowed(dictionary: bool) -> None:
    """Kilobytes that stand for very much more, as runs of zeros and as one long text."""
    limit = 64 * 2**20
    runs = written({"a": np.zeros(10_000_000, np.int64)}, use_dictionary=dictionary)
    text = written({"a": ["0" * 2**27]}, use_dictionary=dictionary)
    assert max(len(runs), len(text)) < 2**17
    child = guarded._Child(limit)
    before = psutil.Process().memory_info().rss
    try:
        child.columns(written({"a": [1]}), ["a"], [], 1)
        usual = peak_of(child)
        for bomb in (runs, text):
            with pytest.raises(ValueError, match="it takes more than 64 MiB to read"):
                child.columns(bomb, ["a"], [], 10**9)
        assert peak_of(child) < usual + limit
    finally:
        child._end()
    assert psutil.Process().memory_info().rss - before < 30 * 2**20


def peak_of(child: guarded._Child) -> int:
    """Bytes that the child held at most; it lives on."""
    assert child._process is not None
    with open(f"/proc/{child._process.pid}/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


def test_a_child_that_dies_costs_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    good = parquet_bytes({"a": np.arange(3, dtype=np.int32)})
    guarded_columns(good, ["a"], [], 10)
    process = guarded._child._process
    assert process is not None
    usual = guarded._child._started

    def dying() -> Any:
        monkeypatch.setattr(guarded._child, "_started", usual)
        os.kill(process.pid, signal.SIGSTOP)  # not to answer before it is killed
        monkeypatch.setattr(guarded, "SECONDS", 0.05)
        return process

    monkeypatch.setattr(guarded._child, "_started", dying)
    with pytest.raises(ValueError, match="can't be read within"):
        guarded_columns(good, ["a"], [], 10)
    monkeypatch.undo()
    assert len(guarded_columns(good, ["a"], [], 10)["a"]) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b'{"columns": {"a": ["|O", 1]}}\n',
        b'{"columns": {"a": ["<i8", 1000000]}}\n',
        b'{"columns": {"a": ["<i8", -1]}}\n',
        b'{"columns": {"a": ["<i8", 2]}}\nshort',
        b"no JSON\n",
        b"\xff\n",
        b'{"columns": 1}\n',
        b'{"columns": []}\n',
        b'{"columns": {"a": 1}}\n',
        b'{"columns": {"a": ["<i8"]}}\n',
        b"[" * 50_000 + b"\n",
        b"x" * 50_000,
    ],
)
def test_an_answer_of_a_child_gone_astray_is_not_believed(answer: bytes) -> None:
    child = guarded._Child()
    child._process = told = subprocess.Popen(
        [sys.executable, "-c", _ANSWERS, answer.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        with pytest.raises(ValueError, match="it can't be read within 512 MiB"):
            child.columns(b"a file", ["a"], [], 100)
        assert told.returncode is not None  # what else it says is nobody's answer
        assert child._process is None
    finally:
        told.kill()


_ANSWERS = """
import os, sys, time
sys.stdin.buffer.readline()
sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))
sys.stdout.buffer.flush()
os.close(1)
time.sleep(60)
"""
