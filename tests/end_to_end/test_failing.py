"""Cells that fail in every way there is: typed rows, and a line that runs only them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

STATUS = {  # the endless one first: the others run, and die, while it is waited for
    "endless": ("timeout", "it took longer than 15 s"),
    "raising": ("error", "ValueError: bad luck at step 0"),
    "exiting": ("error", "SystemExit: usage: train.py --train"),
    "not-a-number": ("nan", "the loss is nan at step"),
    "greedy": ("out-of-memory", "allocate"),
    "leaving": ("killed", "its process ended with exit code 0"),
    "mortal": ("killed", "its process was killed by SIGKILL"),
}


def test_every_kind_of_failure_is_a_row_and_the_others_go_on(
    metabench, misbehaving: Path, third_party: Callable[[str], Path]
) -> None:
    suite = metabench.write_suite(*STATUS, "pixel-centroid")  # a well-behaved plugin beside them
    path = os.pathsep.join(map(str, [misbehaving, third_party("metabench-pixel-centroid")]))
    more = {"PYTHONPATH": path, "MORTAL_MARK": str(metabench.folder / "mark")}
    words = ["run", "-s", suite, "-o", "out", "--jobs", "2", "--timeout", "15"]
    done = metabench(*words, "--json", **more)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for name, (status, text) in STATUS.items():
        found = [x for x in lines if f"5w1s5q/{name}/identity/seed0 {status} after " in x]
        assert len(found) == 1, done.stderr
        assert text in found[0]
    assert "Traceback" not in done.stderr
    assert "about to raise" not in done.stdout + done.stderr
    assert lines[-3] == f"8 cells: 0 reused, 1 run, {len(STATUS)} failed", done.stderr
    assert lines[-1] == (
        "run only the failed cells with: metabench run --suite these.toml --out out --jobs 2"
        " --timeout 15 --json --failed"
    )
    with (metabench.folder / "out" / "leaderboards" / "these.csv").open(encoding="utf-8") as file:
        statuses = {row["algorithm"]: row["status"] for row in csv.DictReader(file)}
    assert statuses == {"pixel-centroid": "ok"} | {
        name: status for name, (status, _) in STATUS.items()
    }
    logs = [p.read_text("utf-8") for p in (metabench.folder / "out").glob("failed/*/log.txt")]
    [raised] = [text for text in logs if "bad luck" in text]
    assert "about to raise" in raised
    assert "Traceback" in raised

    again = metabench(*words, "--failed", "-a", "mortal", "-a", "pixel-*", **more)
    assert again.returncode == 0
    assert "2 cells: 1 reused, 1 run" in again.stderr  # its mark is there: it is killed no more


FULL_DISK = """
import errno, multiprocessing, os

def fsync(handle, real=os.fsync):
    if multiprocessing.parent_process() is not None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(handle)

os.fsync = fsync
"""


def test_a_disk_that_is_full_ends_the_run_in_two_lines(metabench) -> None:
    (metabench.folder / "site").mkdir()
    (metabench.folder / "site" / "sitecustomize.py").write_text(FULL_DISK)
    words = ["run", "-s", "tiny.toml", "-o", "out", "--jobs", "1"]
    done = metabench(*words, PYTHONPATH=str(metabench.folder / "site"))
    assert (done.returncode, done.stdout) == (2, "")
    message, hint = done.stderr.splitlines()[-2:]
    assert message.startswith(f"metabench: the disk of {metabench.folder / 'out'}")
    assert message.endswith("is full")
    assert hint == "free some space, or choose another result folder with --out"
    assert "Traceback" not in done.stderr
    results = metabench.folder / "out"
    assert not list(results.glob("failed/*"))
    assert not any(results.glob("tmp/*"))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(metabench) -> None:
    script = metabench.folder / "script.py"
    script.write_text("import metabench\nmetabench.run('tiny.toml', jobs=2, out='out')\n")
    done = metabench.python(str(script))
    assert done.returncode == 1
    assert "no worker process could be started" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
