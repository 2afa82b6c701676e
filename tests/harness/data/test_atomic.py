"""Folders that appear whole or not at all, also after kill -9."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metabench.data.atomic import building, cannot_write, publish, sweep
from metabench.errors import UsageError

BUILDS_FOR_EVER = """
import sys, time
from pathlib import Path
from metabench.data.atomic import building
with building(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(600)
"""


def test_a_killed_builder_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDS_FOR_EVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        assert sweep(tmp_path) == 0
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 1
    with building(tmp_path) as folder:
        assert os.listdir(tmp_path) == [folder.name]
    assert os.listdir(tmp_path) == []


def test_a_leftover_of_another_machine_is_swept_after_a_day(tmp_path: Path) -> None:
    leftover = tmp_path / ".building-0badc0de-1-0123456789ab"
    leftover.mkdir()
    assert sweep(tmp_path) == 0
    yesterday = time.time() - 25 * 3600
    os.utime(leftover, (yesterday, yesterday))
    assert sweep(tmp_path) == 1
    assert not leftover.exists()


def test_a_leftover_of_an_older_process_with_a_living_ones_number_is_swept(
    tmp_path: Path,
) -> None:
    with building(tmp_path) as folder:
        before_this_process = 1_000_000_000
        os.utime(folder, (before_this_process, before_this_process))
        assert sweep(tmp_path) == 1


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("first", "second"):
        with building(tmp_path) as folder:
            (folder / "file").write_text(content)
            publish(folder, target, lambda there: True)
    assert (target / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["target"]


def test_what_is_not_good_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("a file in the way")
    for content in ("first", "second"):
        with building(tmp_path) as folder:
            (folder / "file").write_text(content)
            publish(folder, target, lambda there: False)
    assert (target / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["target"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    error = cannot_write(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(error, UsageError)
    assert error.message == f"the disk of {tmp_path} is full"
    assert "-d" in error.hint


def test_a_parent_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file"), building(tmp_path / "file"):
        pass
