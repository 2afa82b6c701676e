"""Parquet from strangers, read in a process of its own that may hold so much memory and no more.

A Parquet file of some kilobytes may declare billions of numbers, or lead a decoder astray. So it is
read in a child process whose memory the system limits, and which answers with plain numbers. What
it declares is looked at before: 250 KB of zeros in run-length coding became 560 MB here. One child
serves the whole process and is started anew after a file that it didn't survive.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MEMORY = 512 * 2**20
"""Bytes that a file may take on top of what the child needs itself."""
SECONDS = 60.0
"""Until a file is given up."""
LINE = 2**16
_ASTRAY = (OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What comes of a child that died, or that answers something else than it should."""
KINDS = ("|u1", "|i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")

Column = NDArray[Any]


def guarded_columns(
    data: bytes, names: Iterable[str], optional: Iterable[str], most_rows: int
) -> dict[str, Column]:
    """As `metabench.store.parquet.parquet_columns`, within `MEMORY` and `SECONDS`, of a file that
    holds nothing else.

    Raises:
        ValueError: it's no such file, or can't be read within these.
    """
    return _child.columns(data, [*names], [*optional], most_rows)


class _Child:
    """The child process, started when it is first needed; it may take `memory` bytes a file."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def columns(
        self, data: bytes, names: list[str], optional: list[str], most_rows: int
    ) -> dict[str, Column]:
        ask = {"size": len(data), "names": names, "optional": optional, "most_rows": most_rows}
        with self._lock:
            process = self._started()
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                assert process.stdin
                assert process.stdout
                process.stdin.write(json.dumps(ask).encode() + b"\n" + data)
                process.stdin.flush()
                found = _answer(process.stdout, most_rows)
            except _ASTRAY as error:
                self._end()
                raise ValueError(
                    f"it can't be read within {_mib(self._memory)} and {SECONDS:.0f} seconds"
                ) from error
            finally:
                timer.cancel()
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                # -P: nothing is imported from the folder that happens to be the current one.
                [sys.executable, "-P", "-m", "metabench.publishing.guarded", str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                try:
                    pipe.close()
                except OSError:  # what was not written yet can't be any more
                    continue


_child = _Child()
atexit.register(_child._end)


def _answer(pipe: IO[bytes], most_rows: int) -> dict[str, Column] | str:
    """Columns, or what is wrong; nothing in it is trusted, as the child read a stranger's file."""
    line = pipe.readline(LINE)
    head = json.loads(line) if line.endswith(b"\n") else None
    if not isinstance(head, dict):
        raise EOFError
    if "error" in head:
        return str(head["error"])
    columns = {}
    for name, (kind, rows) in head["columns"].items():
        if kind not in KINDS or not isinstance(rows, int) or not 0 <= rows <= most_rows:
            raise EOFError
        dtype = np.dtype(kind)
        data = pipe.read(rows * dtype.itemsize)
        if len(data) < rows * dtype.itemsize:
            raise EOFError
        columns[name] = np.frombuffer(data, dtype)
    return columns


def main(memory: int) -> None:
    """The child: answers until nobody asks any more."""
    import pyarrow as pa
    import pyarrow.parquet

    from metabench.store.parquet import parquet_columns

    pa.set_memory_pool(pa.system_memory_pool())  # the others set memory aside in advance
    _limit(memory)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := asked.readline(LINE):
        ask = json.loads(line)
        data = asked.read(ask["size"])
        try:
            found = parquet_columns(
                data, ask["names"], ask["optional"], ask["most_rows"], nothing_else=True
            )
            parts = {
                name: np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
                for name, column in found.items()
            }
            head: dict[str, Any] = {
                "columns": {name: [part.dtype.str, len(part)] for name, part in parts.items()}
            }
        except (ValueError, MemoryError) as error:
            head, parts = {"error": _told(error, memory)}, {}
        answers.write(json.dumps(head).encode() + b"\n")
        for part in parts.values():
            answers.write(part.data)
        answers.flush()
        del data, parts


def _told(error: Exception, memory: int) -> str:
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return f"it takes more than {_mib(memory)} to read"
    return str(error)[:300]


def _mib(size: int) -> str:
    return f"{size // 2**20} MiB"


def _limit(memory: int) -> None:
    """Not to take so much more than now, where the system can be asked for that."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            most = memory + int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
