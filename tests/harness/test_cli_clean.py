"""`metabench clean`: it lists, asks, and deletes only what nothing refers to."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metabench.cli import main
from metabench.cli.sizes import size_text

AT_A_TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it interrupts this process
signal.signal(signal.SIGINT, signal.default_int_handler)
from metabench.cli import main
main(["clean", "-o", sys.argv[1]])
"""


def keys(results: Any) -> list[str]:
    return list(results.store.cells.keys())


@pytest.fixture
def stale(results: Any) -> str:
    """A finished cell that its suite refers to no more; returns its key."""
    key = results.add("maml")
    results.add("maml", code="f" * 32)
    return str(key)


def run(results: Any, *args: str) -> Result:
    return CliRunner().invoke(main, ["clean", "-o", str(results.store.root), *args])


def test_with_yes_only_what_nothing_refers_to_is_deleted(results: Any, stale: str) -> None:
    listed = json.loads(run(results, "--json", "--yes").stdout)
    assert [row["path"] for row in listed] == [f"cells/{stale}"]
    assert listed[0]["what"] == "a cell that no suite refers to"
    assert listed[0]["size"] > 0
    assert len(keys(results)) == 1
    assert stale not in keys(results)


def test_without_anybody_to_ask_nothing_is_deleted(results: Any, stale: str) -> None:
    done = run(results)
    assert done.exit_code == 2
    assert f"cells/{stale}" in done.stdout
    assert "add --yes" in done.stderr
    assert stale in keys(results)


def test_a_clean_folder_is_no_question(results: Any) -> None:
    results.add("maml")
    done = run(results)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "nothing to clean" in done.stderr
    assert json.loads(run(results, "--json").stdout) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("typed", "code", "deleted"), [("y\n", 0, True), ("n\n", 0, False), ("\x03", 130, False)]
)
def test_the_answer_at_the_prompt_decides(
    results: Any, stale: str, typed: str, code: int, deleted: bool
) -> None:
    import pty

    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, str(results.store.root)],
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(inner)
    assert process.stderr is not None
    question = process.stderr.read(len("Delete these 1"))
    for patience in (5, 30):
        time.sleep(0.3)  # a Ctrl-C just before Python begins to read is noticed after the next one
        os.write(outer, typed.encode())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            break
    _, told = process.communicate(timeout=30)
    os.close(outer)
    assert question == "Delete these 1"
    assert process.returncode == code, told
    assert (stale not in keys(results)) == deleted


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["clean", "-o", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_501, "1.0 MB"),
        (4_200_000, "4.2 MB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_are_told_in_words(size: int, told: str) -> None:
    assert size_text(size) == told
