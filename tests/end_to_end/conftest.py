"""A tiny suite on the real drawings, and the command line as somebody would use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_suite import HEAD

from metabench.cli import main

SUITE = f"""{HEAD}
[[algorithm]]
name = "protonet"

[[algorithm]]
name = "baseline"
recipe = "supervised"

[[algorithm]]
name = "nearest-centroid"
recipe = "supervised"
"""


@dataclass(frozen=True)
class CommandLine:
    """`metabench`, in processes of its own, in one folder.

    Attributes:
        folder: where it is typed.
        environment: what is set there.
    """

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self.python("-m", "metabench", *words, **more)

    def python(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python to its end."""
        return subprocess.run(
            [sys.executable, *words],
            env={**self.environment, **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def begin(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start it, in a process group of its own as a terminal would."""
        return subprocess.Popen(
            [sys.executable, "-m", "metabench", *words],
            env={**self.environment, **more},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def write_suite(self, *algorithms: str, steps: int = 10, **recipe: object) -> str:
        """Write a suite of these algorithms on pixels; the file's name."""
        settings = "".join(f"{key} = {value}\n" for key, value in recipe.items())
        head = f'summary = "for a test"\n[recipe]\nsteps = {steps}\n{settings}[[dataset]]\n'
        protocol = "[[protocol]]\nways = 5\nshots = 1\nqueries = 5\nepisodes = 10\n"
        tail = "".join(f'[[algorithm]]\nname = "{name}"\n' for name in algorithms)
        text = f'{head}name = "quickdraw"\n{protocol}[[backbone]]\nname = "identity"\n{tail}'
        (self.folder / "these.toml").write_text(text)
        return "these.toml"


@pytest.fixture(scope="session")
def environment(data: Path) -> dict[str, str]:
    """The user's environment, with nothing of metabench set but where data is."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("METABENCH_")}
    clean.pop("PYTHONPATH", None)
    return {**clean, "METABENCH_DATA": str(data), "METABENCH_CACHE": str(data / "cache")}


@pytest.fixture
def metabench(tmp_path: Path, environment: dict[str, str]) -> CommandLine:
    """The command line in an empty folder with the tiny suite, `tiny.toml`."""
    (tmp_path / "tiny.toml").write_text(SUITE)
    return CommandLine(tmp_path, environment)


@pytest.fixture(scope="session")
def here(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Callable[..., Result]:
    """`metabench run` of the tiny suite by this process (its workers are others).

    It is handed the result folder and more options.
    """
    suite = tmp_path_factory.mktemp("suite") / "tiny.toml"
    suite.write_text(SUITE)

    def run(results: Path, *words: str) -> Result:
        line = ["run", "-s", str(suite), "-o", str(results), *words]
        return CliRunner().invoke(main, line, env=environment)

    return run


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, here: Callable[..., Result]
) -> tuple[Path, Result]:
    """The result folder of the tiny suite, run by one worker, and what the run printed."""
    results = tmp_path_factory.mktemp("finished") / "out"
    done = here(results, "--jobs", "1")
    assert done.exit_code == 0, done.stderr
    return results, done


@pytest.fixture(scope="session")
def misbehaving(third_party: Callable[[str], Path]) -> Path:
    """Where the algorithms that fail are installed."""
    return third_party("metabench-misbehaving")


@pytest.fixture(scope="module")
def to_be_timed(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> CommandLine:
    """A folder with a suite of two, and its finished cells in `out`."""
    line = CommandLine(tmp_path_factory.mktemp("timed"), environment)
    suite = line.write_suite("nearest-centroid", "protonet", steps=0)
    assert line("run", "-s", suite, "-o", "out", "--jobs", "1").returncode == 0
    return line
