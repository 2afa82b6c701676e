"""`metabench new` and `metabench check`: what is written works as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metabench.errors import MetabenchError
from metabench.plugins import load_registry
from metabench.registry import KINDS
from metabench.scaffold import write_project
from metabench.testing.conformance.running import Asked, plan

LONGEST_CLASS = 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_passes_its_checks(metabench, tmp_path: Path, kind: str) -> None:
    made = metabench("new", kind, "demo-one")
    assert made.returncode == 0, made.stderr
    assert "metabench check demo-one" in made.stdout
    done = metabench("check", "demo-one", "--json", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {row["plugin"] for row in found} == {f"{kind} demo-one"}
    assert {row["status"] for row in found} <= {"passed", "skipped"}
    assert done.stderr == ""


def test_its_own_test_runs_the_kit(tmp_path: Path) -> None:
    write_project("backbone", "demo", tmp_path, load_registry())
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path / "demo",
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["algorithm", "backbone", "dataset"])
def test_the_class_is_short_and_tidy(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "demo"
    write_project(kind, "demo", tmp_path, load_registry())  # type: ignore[arg-type]
    source = (folder / "src" / "metabench_demo" / "demo.py").read_text()
    body = source[source.index("class Demo(") :].split("\n\n\n")[0]
    assert len(body.splitlines()) < LONGEST_CLASS
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("maml", "taken"),
        ("Demo", "no name"),
        ("a" * 60, "no name"),
        ("../demo", "no name"),
        ("class", "a meaning already"),
        ("field", "a meaning already"),
        ("plugins", "a meaning already"),
        ("quickdraw", "dataset name 'quickdraw' is taken"),
    ],
)
def test_impossible_names(metabench, tmp_path: Path, name: str, told: str) -> None:
    done = metabench("new", "algorithm", name)
    assert done.returncode == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(metabench, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    done = metabench("new", "algorithm", "demo")
    assert done.returncode == 2
    assert "there already" in done.stderr
    assert list((tmp_path / "demo").iterdir()) == []


def test_what_cannot_be_checked_is_told_in_two_lines(metabench) -> None:
    done = metabench("check", "mamml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    assert "did you mean 'maml'" in done.stderr


@pytest.mark.parametrize(
    ("target", "only", "told"),
    [
        ("mamml", (), "did you mean 'maml'"),
        ("nothing.py", (), "there is no file"),
        (".", (), "no project"),
        ("./nothing", (), "no project"),
        ("./broken", (), "cannot be read"),
        ("os.path", (), "has no algorithm"),
        ("protonet", ("shape",), "did you mean 'shapes'"),
    ],
)
def test_what_cannot_be_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    only: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyproject.toml").write_text("[project")
    with pytest.raises(MetabenchError) as found:
        plan(Asked(target, only=only))
    assert told in f"{found.value.message} {found.value.hint}"


def test_it_can_be_installed_and_run(metabench, tmp_path: Path) -> None:
    write_project("algorithm", "demo", tmp_path, load_registry())
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *offline, str(tmp_path / "demo")], check=True)
    suite = str(tmp_path / "demo" / "try.toml")
    planned = metabench("run", "--suite", suite, "--dry-run", "--json", path=(target,))
    assert planned.returncode == 0, planned.stderr
    cells = [row["cell"] for row in json.loads(planned.stdout)]
    assert cells == [f"quickdraw/5w1s15q/{name}/conv4-16/seed0" for name in ("demo", "protonet")]
    # The folder counts as it stands, not as it was installed.
    source = tmp_path / "demo" / "src" / "metabench_demo" / "demo.py"
    source.write_text(
        source.read_text().replace("    family =", '    version = ""\n    family =', 1)
    )
    done = metabench("check", "./demo", "--only", "facts", path=(target,))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the version is a text" in done.stdout
    assert str(source) in done.stdout
