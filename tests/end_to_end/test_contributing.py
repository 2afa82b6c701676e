"""The plugin of CONTRIBUTING.md, word for word, as a package and in a notebook."""

import re
import sys
from pathlib import Path

import pytest

import metabench

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def plugin(tmp_path):
    (source,) = [block for block in blocks("python") if "hookimpl" in block]
    package = tmp_path / "site" / "metabench_nearest_item"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source, encoding="utf-8")
    info = tmp_path / "site" / "metabench_nearest_item-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: metabench-nearest-item\nVersion: 0.1.0\n", encoding="utf-8"
    )
    (pyproject, _) = blocks("toml")
    (entry,) = re.findall(r"\[project\.entry-points\.metabench\]\n(.*)\n", pyproject)
    (info / "entry_points.txt").write_text(f"[metabench]\n{entry.replace(chr(34), '')}\n")
    return str(tmp_path / "site")


def test_the_plugin_of_the_guide_is_listed_shown_and_run(plugin, metabench, tmp_path):
    (_, suite) = blocks("toml")
    file = tmp_path / "mine.toml"
    file.write_text(suite, encoding="utf-8")
    for command in (["list", "plugins"], ["show", "nearest-item"]):
        done = metabench(*command, PYTHONPATH=plugin)
        assert done.returncode == 0, done.stderr
        assert "nearest-item" in done.stdout
    out = tmp_path / "out"
    done = metabench(
        *("run", "--suite", str(file), "--out", str(out), "--jobs", "1", "--json"),
        *("--set", "*.recipe.steps=20", "--set", "protocol.episodes=20"),
        PYTHONPATH=plugin,
    )
    assert done.returncode == 0, done.stderr
    assert '"nearest-item"' in done.stdout


def test_the_class_of_the_guide_runs_in_a_notebook(tmp_path, data):
    (source,) = [block for block in blocks("python") if "hookimpl" in block]
    scope = {"__name__": "notebook"}
    exec(compile(source, "<cell 1>", "exec"), scope)  # as a notebook does
    experiment = metabench.run(
        "smoke", algorithms=["protonet", scope["NearestItem"]], seeds=1, out=tmp_path, data_dir=data
    )
    frame = experiment.to_frame()
    assert set(frame["algorithm"]) == {"protonet", "nearest-item"}
    assert set(frame["status"]) == {"ok"}
    assert "nearest-item" not in sys.modules
