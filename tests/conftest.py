"""Fixtures that many tests share."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes hangs on what else the machine does.
settings.register_profile("metabench", deadline=None)
settings.load_profile("metabench")

THIRD_PARTY = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_stays() -> None:
    """Tests that count what is alive need not walk through all that was there before them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build and install a distribution of tests/third_party, offline, into a folder of its own.

    Returns the folder, which has to be put on the path.
    """
    installed: dict[str, Path] = {}

    def install(name: str) -> Path:
        if name not in installed:
            target = tmp_path_factory.mktemp(name)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            offline = ["--no-deps", "--no-build-isolation", "--no-index"]
            place = ["--target", str(target), str(THIRD_PARTY / name)]
            done = subprocess.run(
                [*pip, *offline, *place], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            installed[name] = target
        return installed[name]

    return install


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that all tests of a process share: the drawings are decoded once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def metabench(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the command line in a process of its own, in an empty folder, with nothing set."""

    def run(
        *args: str, path: tuple[Path, ...] = (), **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith("METABENCH_")}
        clean["PYTHONPATH"] = os.pathsep.join(map(str, path))
        return subprocess.run(
            [sys.executable, "-m", "metabench", *args],
            env={**clean, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
