"""Runs that are killed or interrupted, and what the next one makes of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from metabench.store.record import EPISODES, LOG, RECORD, TIMING

OFTEN = {"METABENCH_CHECKPOINT_SECONDS": "0.1"}
Process = subprocess.Popen[str]


def wait_for(found: Callable[[], object], process: Process, seconds: float = 120) -> None:
    """Until something is found; the process must not end before."""
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def checkpoints(results: Path) -> list[Path]:
    return list(results.glob("partial/*/*/[0-9]*.safetensors"))


def kill_all(process: Process) -> None:
    """`kill -9` of a process and of its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def workers_of(process: Process) -> list[psutil.Process]:
    """Its workers; Python's own resource tracker is none."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """What was typed; nothing of one that ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def bytes_of(results: Path) -> dict[str, bytes]:
    found = [p for name in (RECORD, EPISODES) for p in results.glob(f"cells/*/{name}")]
    return {str(path.relative_to(results)): path.read_bytes() for path in found}


def test_after_kill_9_training_goes_on_to_the_same_bytes(metabench, misbehaving: Path) -> None:
    suite = metabench.write_suite("patient", steps=40, validate_every=5, validation_episodes=5)
    words, path = ["run", "-s", suite, "--jobs", "1"], {"PYTHONPATH": str(misbehaving)}

    results = metabench.folder / "out"
    process = metabench.begin(*words, "-o", "out", **path, **OFTEN, PATIENT_SECONDS="0.1")
    wait_for(lambda: checkpoints(results), process)
    kill_all(process)
    assert not list(results.glob("cells/*/*"))

    again = metabench(*words, "-o", "out", **path)
    assert again.returncode == 0, again.stderr
    [log] = results.glob(f"cells/*/{LOG}")
    [step] = re.findall(r"episodic phase goes on from step (\d+) of 40", log.read_text("utf-8"))
    assert 1 <= int(step) < 40
    undisturbed = "import metabench; metabench.run('these.toml', out='undisturbed')"
    metabench.python("-c", undisturbed, **path)
    assert bytes_of(results) == bytes_of(metabench.folder / "undisturbed")
    assert not checkpoints(results)


def bytes_of_timings(results: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in results.glob(f"cells/*/{TIMING}/*.json")}


def ctrl_c(process: Process) -> None:
    """As a terminal does it: to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("end", "what", "code"),
    [(ctrl_c, "interrupted", 130), (Process.terminate, "terminated", 143)],
    ids=["ctrl-c", "sigterm"],
)
def test_ctrl_c_and_sigterm_keep_what_is_finished_and_say_how_to_go_on(
    end: Callable[[Process], None], what: str, code: int, metabench, misbehaving: Path
) -> None:
    suite = metabench.write_suite("nearest-centroid", "patient", steps=0)
    words = ["run", "-s", suite, "-o", "out", "--jobs", "1", "--set", "patient.recipe.steps=1000"]
    path = {"PYTHONPATH": str(misbehaving)}
    process = metabench.begin(*words, **path, **OFTEN, PATIENT_SECONDS="0.1")
    results = metabench.folder / "out"
    wait_for(lambda: checkpoints(results), process)
    workers = workers_of(process)
    begun = time.monotonic()
    for _ in range(2):  # some people press twice
        end(process)
        time.sleep(0.05)
    printed, told = process.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert (process.returncode, printed) == (code, "")
    assert told.splitlines()[-1] == (
        f"{what}; what is finished is kept. Go on with: metabench run --suite these.toml"
        " --set patient.recipe.steps=1000 --out out --jobs 1"
    )
    assert "Traceback" not in told
    assert "resource_tracker" not in told
    assert workers
    assert not any(worker.is_running() for worker in workers)
    assert len(list(results.glob(f"cells/*/{RECORD}"))) == 1


@pytest.mark.parametrize(
    ("end", "what", "code"),
    [(ctrl_c, "interrupted", 130), (Process.terminate, "terminated", 143)],
    ids=["ctrl-c", "sigterm"],
)
def test_timing_that_is_ended_says_what_is_kept(
    end: Callable[[Process], None], what: str, code: int, to_be_timed
) -> None:
    results = to_be_timed.folder / "out"
    before = bytes_of_timings(results)
    process = to_be_timed.begin("time", "-s", "these.toml", "-o", "out", "--seconds", "4")
    wait_for(lambda: bytes_of_timings(results) != before, process)  # the first of two is timed
    workers = workers_of(process)
    end(process)
    printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    assert told.splitlines()[-1] == (
        f"{what}; what was timed is kept. All again with: metabench time --suite these.toml"
        " --out out --seconds 4"
    )
    assert "Traceback" not in told
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
def test_workers_end_when_their_run_is_killed(metabench, misbehaving: Path) -> None:
    suite = metabench.write_suite("endless")
    path = {"PYTHONPATH": str(misbehaving)}
    process = metabench.begin("run", "-s", suite, "-o", "out", "--jobs", "2", **path)
    wait_for(lambda: list((metabench.folder / "out").glob("partial/*/*/log.txt")), process)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the mask")
def test_a_worker_never_sees_ctrl_c_not_even_while_it_starts(metabench, misbehaving: Path) -> None:
    suite = metabench.write_suite("endless")
    path = {"PYTHONPATH": str(misbehaving)}
    process = metabench.begin("run", "-s", suite, "-o", "out", "--jobs", "2", **path)
    try:
        wait_for(lambda: workers_of(process), process)
        for worker in workers_of(process):
            status = Path(f"/proc/{worker.pid}/status").read_text()
            [mask] = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
            assert int(mask, 16) & 1 << signal.SIGINT - 1
    finally:
        kill_all(process)
