"""`metabench show`: pages on what is registered, and on cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner, Result

from metabench import Field, Hyperparameters
from metabench.cli import main
from metabench.cli.show_plugin import settings_data, settings_table
from metabench.plugins import registry
from metabench.store.suites import SuiteCell


@pytest.fixture
def run(results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_OUT", str(results.store.root))
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "data"))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, ["show", *args])

    return invoke


# What is registered.


def test_an_algorithm_has_paper_idea_settings_and_recipe(run: Any) -> None:
    from metabench_plugins.algorithms.metric.protonet import ProtoNet

    text = run("protonet").stdout
    assert text.startswith("algorithm protonet\n\nsummary: Classifies a query")
    assert re.search(r"^plugin: 'builtin' of metabench \d", text, re.MULTILINE)
    assert "reference: Snell et al. 2017, arXiv:1703.05175" in text
    assert "https://arxiv.org/abs/1703.05175" in text
    told = json.loads(run("protonet", "--json").stdout)
    assert told["idea"].startswith("Prototypical networks.\n\nJake Snell")
    assert told["hyperparameters"][1] == {
        "name": "temperature",
        "default": 1.0,
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "meaning": "distances are divided by it before the softmax",
    }
    assert told["recipe"] == ProtoNet.recipe.model_dump(mode="json")
    assert told["equivariant to"] == sorted(ProtoNet.equivariant_to)
    assert told["inference"] == "inductive"


@pytest.mark.parametrize("kind", ["algorithm", "backbone", "dataset"])
def test_everything_registered_has_a_page_in_three_formats(run: Any, kind: str) -> None:
    for name in registry().of(kind):  # type: ignore[arg-type]
        for fmt in ("table", "json", "markdown"):
            done = run(f"{kind}:{name}", "--format", fmt)
            assert done.exit_code == 0, done.output
            assert name in done.stdout


def test_a_data_set_has_its_card_and_licence(run: Any) -> None:
    told = json.loads(run("quickdraw", "--json").stdout)
    assert told["licence"] == "CC BY 4.0, Google"
    assert "What it is not" in told["card"]
    assert told["state"] == "ready"
    assert (told["size"], told["class splits"]) == (0, ["default"])


def test_a_suite_has_its_matrix(run: Any) -> None:
    told = json.loads(run("smoke", "--json").stdout)
    assert told["cells"] == sum(len(row["seeds"]) for row in told["matrix"])
    proto = next(row for row in told["matrix"] if row["algorithm"] == "protonet")
    assert (proto["backbone"], proto["steps"], proto["seeds"]) == ("conv4-8", 10, [0])
    assert told["protocols"][0]["name"] == "5w1s5q"


def test_a_suite_can_be_a_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('summary = "x"\nseeds = [3, 5]\n')
    assert run(str(file)).exit_code == 2
    file.write_text(
        'summary = "x"\nseeds = [3, 5]\n[[dataset]]\nname = "quickdraw"\n'
        '[[protocol]]\nways = 5\nshots = 1\n[[backbone]]\nname = "identity"\n'
        '[[algorithm]]\nname = "nearest-centroid"\n'
    )
    told = json.loads(run(str(file), "--json").stdout)
    assert (told["cells"], told["matrix"][0]["seeds"]) == (2, [3, 5])
    assert "3,5" in run(str(file)).stdout


def test_a_name_of_two_things_asks_which(run: Any) -> None:
    done = run("omniglot")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "dataset:omniglot or suite:omniglot" in done.stderr
    assert run("dataset:omniglot").stdout.startswith("dataset omniglot")
    assert run("suite:omniglot").stdout.startswith("suite omniglot")


class Many(Hyperparameters):
    rate: Annotated[float, Field(gt=0, le=1, description="of learning")] = 0.5
    steps: Annotated[int | None, Field(ge=1, description="none: all")] = None
    mode: Literal["a", "b"] = "b"
    on: bool = True
    word: Annotated[str, Field(min_length=2, pattern="^x")] = "xy"
    sizes: tuple[int, ...] = (1, 2)


def test_settings_say_what_they_may_be() -> None:
    rows = {row["name"]: (row["default"], row["values"]) for row in settings_table(Many())}
    assert rows == {
        "rate": ("0.5", "number, > 0, <= 1"),
        "steps": ("none", "whole number, >= 1 or none"),
        "mode": ("b", "a, b"),
        "on": ("true", "true or false"),
        "word": ("xy", "text, 2 characters or more, like ^x"),
        "sizes": ("[1,2]", "list"),
    }


def test_settings_as_data_are_values() -> None:
    rows = {row["name"]: (row["default"], row["schema"]) for row in settings_data(Many())}
    assert rows == {
        "rate": (0.5, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "steps": (None, {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}),
        "mode": ("b", {"type": "string", "enum": ["a", "b"]}),
        "on": (True, {"type": "boolean"}),
        "word": ("xy", {"type": "string", "minLength": 2, "pattern": "^x"}),
        "sizes": ([1, 2], {"type": "array", "items": {"type": "integer"}}),
    }


# Cells.


def test_a_finished_cell_has_record_times_log_and_command(run: Any, results: Any) -> None:
    key = results.add("maml", train_s=2.5)
    results.time(key, 3.0, 4.0)
    for name in (key, key[:8], "quickdraw/5w1s3q/maml/conv4-32/seed0"):
        told = json.loads(run(name, "--json").stdout)
        assert (told["key"], told["status"], told["suites"]) == (key, "ok", "study")
    assert told["record"] == results.store.find(key).to_json()
    assert told["run"]["train_s"] == 2.5
    assert told["log"].splitlines() == [f"line {n}" for n in range(30, 50)]
    assert told["command"].endswith("--algorithm maml --backbone conv4-32 --seed 0")
    text = run(key).stdout
    score = results.predicted[key].scores("accuracy").mean()
    assert f"score: {score:.4f}\n" in text
    assert "algorithm: code=aaaaaaaa" in text
    assert "to run it again\n  metabench run --suite study" in text


def test_what_an_algorithm_measured_of_itself_stands_apart(run: Any, results: Any) -> None:
    key = results.add("maml", figures={"mapped_error": 0.25, "accuracy": 0.5})
    told = json.loads(run(key, "--json").stdout)
    assert told["record"]["result"]["figures"] == {"mapped_error": 0.25, "accuracy": 0.5}
    text = run(key).stdout
    assert "measured by the algorithm itself, on meta-validation\n" in text
    assert "mapped_error: 0.2500\n" in text
    assert "figures" not in text
    other = results.add("reptile")
    assert "figures" not in results.store.find(other).to_json()["result"]
    assert "measured by" not in run(other).stdout


def test_the_line_that_runs_a_cell_again_works_here(run: Any, results: Any, tmp_path: Path) -> None:
    key = results.add("maml", suite="gone", command="metabench run --suite old/gone.toml --seed 0")
    mine = tmp_path / "mine.toml"
    lines = {
        "gone": "metabench run --suite old/gone.toml --seed 0",
        "mine": f"metabench run --suite {mine} --seed 0",
        "smoke": "metabench run --suite smoke --algorithm maml --seed 0",
    }
    [first] = results.store.suite("gone")

    def again() -> str:
        return json.loads(run(key, "--json").stdout)["command"]

    def note(suite: str) -> None:
        noted = first.model_copy(update={"command": lines[suite]})
        results.store.remember_suite(suite, [noted])

    assert again() == lines["gone"]  # nothing better is known
    note("gone")
    note("smoke")
    assert again() == lines["smoke"]
    note("mine")
    assert again() == lines["smoke"]
    mine.touch()
    assert again() == lines["mine"]


def test_a_failed_cell_has_its_error_and_traceback(run: Any, results: Any) -> None:
    from metabench.store.record import Failure, RunInfo

    key = results.add("maml", status="error")
    failed = results.store.failure(key)
    trace = 'Traceback:\n  File "x.py", line 3\n    \x1b[31mboom\nValueError: [bold]no[/bold]'
    failure = Failure(
        status="nan", exception="ValueError", message="[bold]no[/bold]", traceback=trace, where="3"
    )
    log = results.store.root / "log"
    log.write_bytes(b"begun\n\xff\x1b[2Jbroken off\n")
    run_of = RunInfo(command="rm -rf / # metabench run")
    results.store.fail(failed.identity, failure, run_of, log)
    text = run(key[:6]).stdout
    assert "status: nan\n" in text
    assert "error: ValueError: [bold]no[/bold]" in text
    assert '  Traceback:\n    File "x.py", line 3\n      boom\n' in text
    assert "broken off" in text
    assert "\x1b" not in text
    assert "rm -rf" not in text
    assert json.loads(run(key[:6], "--json").stdout)["failure"]["failure"]["where"] == "3"


def test_a_cell_that_runs_shows_its_log_so_far(run: Any, results: Any) -> None:
    key = results.add("maml", status="missing")
    with results.store.claim(key) as partial:
        (partial.folder / "log.txt").write_text("step 20\n")
        text = run(key).stdout
    assert "status: missing" in text
    assert "  step 20\n" in text
    assert "to run it again" not in text


def test_a_cell_that_no_suite_refers_to_is_found_by_its_key(run: Any, results: Any) -> None:
    key = results.add("maml")
    results.add("maml", code="f" * 32)
    assert "none (metabench clean would delete it)" in run(key).stdout


def test_what_could_be_several_cells_is_refused_with_their_keys(run: Any, results: Any) -> None:
    keys = [results.add("maml", code="1" * 32), results.add("maml", suite="other", code="2" * 32)]
    done = run("quickdraw/5w1s3q/maml/conv4-32/seed0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert all(key[:8] in done.stderr for key in keys)
    twins = [SuiteCell(key=f"abcd{n:028d}", labels={}) for n in range(2)]
    for cell in twins:
        results.store.folder(cell.key).mkdir(parents=True)
    assert "could be several cells" in run("abcd").stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("protonett", "did you mean 'protonet'?"),
        ("ffffffff", "metabench list shows every name"),
        ("quickdraw/5w1s3q/mamml/conv4-32/seed0", "quickdraw/5w1s3q/maml/conv4-32/seed0"),
        ("algorithm:mamml", "did you mean 'maml'?"),
        ("x/y", "metabench status"),
    ],
)
def test_what_is_unknown_is_told_with_the_nearest(
    run: Any, results: Any, name: str, told: str
) -> None:
    results.add("maml")
    done = run(name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_without_results_names_are_still_known(tmp_path: Path) -> None:
    def show(name: str) -> Result:
        return CliRunner().invoke(main, ["show", name, "-o", str(tmp_path / "none")])

    assert show("maml").exit_code == 0
    assert "did you mean 'maml'?" in show("mamll").stderr
    assert "there are no results in" in show("a/b").stderr
    assert not (tmp_path / "none").exists()


def test_a_page_is_no_csv_and_its_markdown_is_escaped(run: Any, results: Any) -> None:
    assert "a page is no table" in run("maml", "--format", "csv").stderr
    key = results.add("<b>|x")
    page = run(key, "--format", "markdown").stdout
    assert page.startswith(r"# cell quickdraw/5w1s3q/&lt;b&gt;\|x/conv4-32/seed0")
    assert "## result" in page
    assert "    line 49" in page
