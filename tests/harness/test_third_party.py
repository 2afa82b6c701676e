"""Distributions of other people (tests/third_party), installed apart, seen from outside."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import metabench as mb
from metabench.plugins import load_registry

BAD = {
    "metabench-raises-at-import": (
        "raising",
        "plugin 'raising' of metabench-raises-at-import 0.1.0 is left out: KeyError: 'depth'",
        "metabench_raises_at_import/__init__.py:7)",
    ),
    "metabench-exits-at-import": (
        "exiting",
        "plugin 'exiting' of metabench-exits-at-import 0.2.0 is left out: it called"
        " sys.exit('usage: train.py --train')",
        "metabench_exits_at_import/__init__.py:6)",
    ),
    "metabench-misspelt-hook": (
        "misspelt",
        "plugin 'misspelt' of metabench-misspelt-hook 0.3.0 is left out: there is no hook"
        " 'metabench_register_algorithm'; the nearest is 'metabench_register_algorithms'",
        "metabench_misspelt_hook/__init__.py:6)",
    ),
    "metabench-taken-name": (
        "taken",
        "plugin 'taken' of metabench-taken-name 0.4.0 is loaded in part: the algorithm name"
        " 'protonet' is taken by plugin 'builtin' of metabench ",
        "metabench_taken_name/__init__.py:17)",
    ),
    "metabench-raising-hook": (
        "hooked",
        "plugin 'hooked' of metabench-raising-hook 0.5.0 is left out: FileNotFoundError:",
        "metabench_raising_hook/__init__.py:24)",
    ),
}


def names(text: str) -> list[str]:
    return [row["name"] for row in json.loads(text)]


@pytest.fixture(scope="session")
def good(third_party: Callable[[str], Path]) -> Path:
    return third_party("metabench-pixel-centroid")


def test_a_good_plugin_is_listed_beside_the_built_in_ones(metabench, good: Path) -> None:
    done = metabench("list", "algorithms", "--json", path=(good,))
    assert (done.returncode, done.stderr) == (0, "")
    ours = [row for row in json.loads(done.stdout) if row["name"] == "pixel-centroid"]
    assert ours == [
        {
            "name": "pixel-centroid",
            "family": "metric",
            "inference": "inductive",
            "reference": "Tibshirani et al. 2002, doi:10.1073/pnas.082099299",
            "summary": "Nearest class mean on flattened, scaled pixels; nothing is trained.",
            "plugin": "pixels",
        }
    ]
    listed = metabench("list", "plugins", path=(good,))
    assert "metabench-pixel-centroid" in listed.stdout
    strict = metabench("--strict-plugins", "list", "plugins", path=(good,))
    assert (strict.returncode, strict.stdout) == (0, listed.stdout)


def test_the_algorithm_of_a_good_plugin_is_loaded_and_learns(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.syspath_prepend(str(good))
    known = load_registry(strict=True)
    algorithm, identity = (
        known.get("algorithm", "pixel-centroid"),
        known.get("backbone", "identity"),
    )
    item = mb.ItemSpec("image", (1, 4, 4))
    cls = algorithm.load()
    backbone = identity.load()(item, identity.load().hyperparameters())
    learner = cls(backbone, cls.hyperparameters(), mb.Problem(item, 3, 2, 3, 10))
    images = torch.eye(16)[:3].reshape(1, 3, 1, 4, 4)  # one bright pixel a class
    support = mb.Support(
        mb.Items(images.repeat(1, 2, 1, 1, 1)), mb.Targets(torch.tensor([[0, 1, 2] * 2])), 3
    )
    ctx = mb.Context("test", mb.EpisodeRandom(bytes(16), [0]))
    logits = learner.predict(learner.adapt(support, ctx), mb.Items(images.flip(1)), ctx)
    assert logits.shape == (1, 3, 3)
    assert logits.argmax(-1).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("distribution", BAD)
def test_a_bad_plugin_costs_one_line_and_nothing_else(
    distribution: str, metabench, third_party: Callable[[str], Path], good: Path
) -> None:
    name, line, where = BAD[distribution]
    bad = third_party(distribution)

    done = metabench("list", "algorithms", "--json", path=(bad, good))
    undisturbed = metabench("list", "algorithms", "--json", path=(good,))
    assert done.returncode == 0
    warnings = [w for w in done.stderr.splitlines() if w.startswith("metabench: warning: ")]
    [warning] = warnings
    assert warning.startswith(f"metabench: warning: {line}")
    assert warning.endswith(where)
    assert "Traceback" not in done.stderr
    extra = ["protonet-ours"] if name == "taken" else []  # its other algorithm is welcome
    assert [n for n in names(done.stdout) if n not in extra] == names(undisturbed.stdout)
    assert set(extra) <= set(names(done.stdout))

    strict = metabench("--strict-plugins", "list", path=(bad, good))
    assert (strict.returncode, strict.stdout) == (2, "")
    assert strict.stderr.splitlines()[-2].startswith(f"metabench: {line}")
    assert f"METABENCH_DISABLE_PLUGINS={name}" in strict.stderr

    skipped = metabench(
        "--strict-plugins", "list", "plugins", "--json", path=(bad, good),
        METABENCH_DISABLE_PLUGINS=name,
    )  # fmt: skip
    assert (skipped.returncode, skipped.stderr) == (0, "")
    status = {row["name"]: row["status"] for row in json.loads(skipped.stdout)}
    assert status == {"builtin": "loaded", name: "disabled", "pixels": "loaded"}


def test_all_bad_plugins_at_once_cost_a_line_each(
    metabench, third_party: Callable[[str], Path], good: Path
) -> None:
    path = (*map(third_party, BAD), good)
    done = metabench("list", "plugins", "--json", path=path)
    rows = json.loads(done.stdout)
    assert {row["name"]: row["status"] for row in rows} == {
        "builtin": "loaded",
        "exiting": "failed",
        "misspelt": "failed",
        "pixels": "loaded",
        "raising": "failed",
        "hooked": "failed",
        "taken": "loaded in part",
    }
    assert all(bool(row["error"]) == (row["name"] not in ("builtin", "pixels")) for row in rows)
    printed = "this belongs on standard error, if anywhere"
    lines = [line for line in done.stderr.splitlines() if line != printed]
    assert len(lines) == len(BAD)
    only = metabench("list", "plugins", path=path, METABENCH_DISABLE_PLUGINS="all")
    assert (only.returncode, only.stderr) == (0, "")
    assert only.stdout.count("disabled") == len(path)
