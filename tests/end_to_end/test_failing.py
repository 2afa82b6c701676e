"""Cells that fail in every way there is: typed rows, and a line that runs only them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = {
    "raising": ("error", "ValueError: bad luck at step 0"),
    "exiting": ("error", "SystemExit: usage: train.py --train"),
    "not-a-number": ("nan", "the loss is nan at step"),
    "greedy": ("out-of-memory", "allocate"),
    "leaving": ("killed", "its process ended with exit code 0"),
    "mortal": ("killed", "its process was killed by SIGKILL"),
    "endless": ("timeout", "it took longer than 12 s"),
}


def test_every_kind_of_failure_is_a_row_and_the_others_go_on(metabench, misbehaving: Path) -> None:
    suite = metabench.write_suite(*STATUS, "patient")
    more = {"PYTHONPATH": str(misbehaving), "MORTAL_MARK": str(metabench.folder / "mark")}
    words = ["run", "-s", suite, "-o", "out", "--jobs", "2", "--timeout", "12"]
    done = metabench(*words, "--json", **more)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for name, (status, text) in STATUS.items():
        [line] = [x for x in lines if f"5w1s5q/{name}/identity/seed0 {status} after " in x]
        assert text in line
    assert "Traceback" not in done.stderr
    assert "about to raise" not in done.stdout + done.stderr
    assert lines[-3] == f"8 cells: 0 reused, 1 run, {len(STATUS)} failed"
    assert lines[-1] == (
        "run only the failed cells with: metabench run --suite these.toml --jobs 2 --out out"
        " --timeout 12 --json --failed"
    )
    with (metabench.folder / "out" / "leaderboards" / "these.csv").open(encoding="utf-8") as file:
        statuses = {row["algorithm"]: row["status"] for row in csv.DictReader(file)}
    assert statuses == {"patient": "ok"} | {name: status for name, (status, _) in STATUS.items()}
    logs = [p.read_text("utf-8") for p in (metabench.folder / "out").glob("failed/*/log.txt")]
    [raised] = [text for text in logs if "bad luck" in text]
    assert "about to raise" in raised
    assert "Traceback" in raised

    again = metabench(*words, "--failed", "-a", "mortal", "-a", "patient", **more)
    assert again.returncode == 0
    assert "2 cells: 1 reused, 1 run" in again.stderr  # its mark is there: it is killed no more


def test_fail_fast_stops_at_the_first_failure(metabench, misbehaving: Path) -> None:
    suite = metabench.write_suite("raising", "patient", "endless")
    path = {"PYTHONPATH": str(misbehaving)}
    done = metabench("run", "-s", suite, "-o", "out", "--jobs", "1", "-x", **path)
    assert done.returncode == 1
    assert "3 cells: 0 run, 1 failed, 2 not run" in done.stderr.replace("0 reused, ", "")
    assert done.stderr.endswith("--jobs 1 --out out --fail-fast --failed\n")


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


def test_a_plugin_of_somebody_else_runs_in_workers(metabench, third_party) -> None:
    good = third_party("metabench-pixel-centroid")
    suite = metabench.write_suite("pixel-centroid", steps=0)
    done = metabench("run", "-s", suite, "-o", "out", "-j", "1", "--json", PYTHONPATH=str(good))
    assert done.returncode == 0, done.stderr
    assert '"algorithm": "pixel-centroid"' in done.stdout
    assert '"status": "ok"' in done.stdout


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(metabench) -> None:
    script = metabench.folder / "script.py"
    script.write_text("import metabench\nmetabench.run('tiny.toml', jobs=2, out='out')\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=metabench.environment,
        cwd=metabench.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "no worker process could be started" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
