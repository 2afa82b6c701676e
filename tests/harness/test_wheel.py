"""What is in the wheel is what git tracks: nothing left out by an ignore pattern, nothing more."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"harness/metabench": "metabench", "plugins/metabench_plugins": "metabench_plugins"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def tracked_names():
    command = ["git", "ls-files", "-z", *PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    return {
        name.replace(folder, package, 1)
        for name in names
        for folder, package in PACKAGES.items()
        if name.startswith(f"{folder}/")
    }


def test_the_wheel_holds_every_tracked_file_of_both_packages(wheel_names):
    assert tracked_names() - wheel_names == set()


def test_the_wheel_holds_types_data_and_attribution(wheel_names):
    files = "metabench_plugins/datasets/files"
    assert {
        "metabench/py.typed",
        "metabench_plugins/py.typed",
        f"{files}/quickdraw.xz",
        f"{files}/quickdraw_ATTRIBUTION.txt",
        "metabench_plugins/suites/fewshot.toml",
        "metabench/publishing/templates/datasheet.md.jinja",
        "metabench/publishing/templates/LICENSE.jinja",
        "metabench/publishing/templates/CITATION.cff.jinja",
    } <= wheel_names


def test_the_embedded_drawings_are_at_most_five_megabytes():
    path = ROOT / "plugins/metabench_plugins/datasets/files/quickdraw.xz"
    assert path.stat().st_size <= 5_000_000
