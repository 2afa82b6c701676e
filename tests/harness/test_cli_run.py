"""`metabench run`: what it refuses, what it tells, and how. Whole runs are in tests/end_to_end."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from metabench.cli import main
from metabench.cli.ending import again as line_again
from metabench.cli.run import command
from metabench.cli.watch import Lines, Screen
from metabench.engine.progress import Progress
from metabench.experiment.prepared import prepare
from metabench.runner.jobs import Job, JobResult
from metabench.runner.plan import Plan
from metabench.store.record import Failure

TINY = """
summary = "for a test"
[recipe]
steps = 4
[[dataset]]
name = "quickdraw"
[[protocol]]
ways = 5
shots = 1
queries = 2
episodes = 5
[[backbone]]
name = "conv4"
label = "conv4-4"
hyperparameters = {width = 4}
[[algorithm]]
name = "protonet"
[[algorithm]]
name = "maml"
"""


@pytest.fixture
def run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`metabench run` in an empty folder with `tiny.toml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_DATA", str(data))
    monkeypatch.setenv("METABENCH_CACHE", str(data / "cache"))
    monkeypatch.delenv("METABENCH_OUT", raising=False)
    (tmp_path / "tiny.toml").write_text(TINY)
    return lambda *words: CliRunner().invoke(main, ["run", *words])


REFUSED = [
    (["--suite", "smoek"], "there is no suite called 'smoek'", "did you mean 'smoke'?"),
    (["--suite", "no/such.toml"], "the suite file no/such.toml cannot be read", "give the path"),
    (["-a", "protonett"], "no algorithm 'protonett'", "did you mean 'protonet'?"),
    (["-b", "convv4-4"], "no backbone 'convv4-4'", "did you mean 'conv4-4'?"),
    (["--dataset", "quickdrow"], "no dataset 'quickdrow'", "did you mean 'quickdraw'?"),
    (["-p", "5w2s"], "no protocol '5w2s'", "5w1s2q"),
    (["--exclude", "protonett"], "exclude", "protonet"),
    (["--set", "maml.inner_rl=1"], "no key called 'inner_rl'", "did you mean 'inner_lr'?"),
    (["--set", "maml.inner_lr=-1"], "inner_lr", ""),
    (
        ["--set", "maml.inner_lr=nan"],
        "--set maml.inner_lr=nan: inner_lr = nan should be a finite number",
        "inner_lr: ",
    ),
    (["--set", "*.steps=3"], "no key called 'steps'", "did you mean '*.recipe.steps'?"),
    (["--set", "conv4.width=3"], "no algorithm 'conv4'", "did you mean 'backbone.conv4.width'?"),
    (["--set", "inner_lr"], "--set inner_lr: no such form", "write --set maml.inner_lr=0.1"),
    (["--set", "protocol.ways=70"], "70 ways asked for, but the test split has 52", ""),
    (["--set", "protocol.ways=70"], "quickdraw/70w1s2q/protonet/conv4-4/seed0: 70 ways", "fewer"),
    (["--set", "protocol.queries=100"], "101", ""),
    (["--seeds", "1", "--seed", "0"], "exclude each other", "--seed 0,1,2"),
    (["--seed", "0,x"], "'0,x' is no list of whole numbers", "run -h"),
    (["--seed", "1,1"], "seeds 1, 1", ""),
    (["--seed", str(2**63)], "and below 2**63", "--seed 0,1,2"),
    (["--seeds", "0"], "--seeds", "run -h"),
    (["--jobs", "0"], "--jobs", "run -h"),
    (["--timeout", "0"], "--timeout", "run -h"),
    (["--timeout", "nan"], "a timeout of nan is no time", "seconds"),
    (["--timeout", "inf"], "a timeout of inf is no time", "seconds"),
    (["--out", ""], "the result folder has no name", "-o/--out"),
    (["--failed", "--fresh"], "exclude each other", "fresh"),
    (["--device", "gpu"], "there is no device called 'gpu'", "auto, cpu, cuda or cuda:N"),
    (["--device", "mps"], "'mps' is not supported", "auto, cpu, cuda or cuda:N"),
    (["--precision", "tf32", "--device", "cpu"], "precision tf32 is CUDA's own", "float32 or bf16"),
    (["--precision", "fp16"], "no precision called 'fp16'", "bf16"),
    (["--out", "tiny.toml"], "tiny.toml", ""),
    (["--out", "tiny.toml/out"], "tiny.toml", "--out"),
    (["--data-dir", "tiny.toml"], "tiny.toml is not a folder", "-d/--data-dir"),
    (["--jbos", "2"], "--jobs", "run -h"),
]


@pytest.mark.parametrize(("words", "message", "hint"), REFUSED, ids=lambda x: " ".join(x)[:40])
def test_what_cannot_be_meant_is_refused_in_two_lines(
    words: list[str], message: str, hint: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    suite = [] if "--suite" in words else ["--suite", "tiny.toml"]
    result = run(*suite, *words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    lines = result.stderr.splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("metabench: ")
    assert message in lines[0]
    assert hint in (lines[1:] or [""])[0]
    assert not list(tmp_path.glob("metabench-results/cells/*"))


@pytest.mark.parametrize(
    ("old", "new", "told", "hint"),
    [
        ("steps = 4", "stepz = 4", "tiny.toml, [recipe]: there is no key called 'stepz'", "steps"),
        (
            '"maml"',
            '"mamml"',
            "tiny.toml, [[algorithm]] 2 (mamml): there is no algorithm called 'mamml'",
            "'maml'",
        ),
        (
            'name = "conv4"',
            'name = "convv4"',
            "tiny.toml, [[backbone]] 1 (convv4): there is no backbone called 'convv4'",
            "'conv4'",
        ),
        ("ways = 5", "ways = 1", "tiny.toml, [[protocol]] 1", ""),
        (
            "[[backbone]]",
            "[[bakcbone]]",
            "tiny.toml: there is no key called 'bakcbone'",
            "backbone",
        ),
    ],
)
def test_a_typo_in_a_suite_names_file_key_and_the_nearest(
    old: str, new: str, told: str, hint: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace(old, new))
    result = run("--suite", "tiny.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    message, *more = result.stderr.splitlines()
    assert told in message
    assert hint in "".join(more)
    assert len(more) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none(run: Callable[..., Result]) -> None:
    result = run("-s", "tiny.toml", "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "metabench: device 'cuda' asked for, but PyTorch sees 0 CUDA devices",
        "use --device cpu, or install a PyTorch build with CUDA and its driver",
    ]


def test_a_data_set_that_is_missing_offline(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):  # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    text = TINY.replace('"quickdraw"', '"omniglot"')
    (tmp_path / "tiny.toml").write_text(text)
    result = run("-s", "tiny.toml", "-d", str(tmp_path / "empty"), "-q")
    assert (result.exit_code, result.stdout) == (2, "")
    message, hint = result.stderr.splitlines()[-2:]
    assert "omniglot" in message
    assert "metabench data prepare omniglot" in hint
    assert "Traceback" not in result.stderr


def test_a_result_folder_of_a_newer_version(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "store.json").write_text('{"schema": 99}')
    result = run("-s", "tiny.toml", "-o", "out")
    assert result.exit_code == 2
    message, hint = result.stderr.splitlines()
    assert "newer version (schema 99" in message
    assert "upgrade metabench" in hint


def test_a_dry_run_trains_and_writes_nothing(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("-s", "tiny.toml", "--dry-run", "--seeds", "2", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["cell"] for row in rows] == [
        f"quickdraw/5w1s2q/{name}/conv4-4/seed{seed}"
        for name in ("protonet", "maml")
        for seed in (0, 1)
    ]
    assert {row["state"] for row in rows} == {"to run"}
    assert done.stderr == "4 cells, 0 finished; nothing was run\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_dry_run_says_what_is_finished_and_what_failed(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("tiny.toml", algorithms="protonet", out="out").run()
    broken = "metabench.runner.cell.CellRun.run"
    monkeypatch.setattr(broken, lambda self, partial, log_file: 1 / 0)
    prepare("tiny.toml", algorithms="maml", out="out").run()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    done = run("-s", "tiny.toml", "-o", "out", "--dry-run", "--json")
    assert [row["state"] for row in json.loads(done.stdout)] == ["finished", "error"]


def again(*words: str) -> str:
    """The line that goes on with a run of these words."""
    found: list[str] = []

    @click.command("run", params=command.params)
    @click.pass_context
    def stub(ctx: click.Context, /, **options: object) -> None:
        found.append(line_again(ctx, "--failed"))

    CliRunner().invoke(stub, list(words), env={"METABENCH_OUT": "elsewhere"})
    return found[0]


def test_the_line_that_goes_on_is_the_one_that_was_typed() -> None:
    assert again("-s", "smoke") == "metabench run --suite smoke --failed"
    typed = ["-s", "a b.toml", "-a", "maml", "-a", "proto*", "--set", "maml.inner_lr=0.1"]
    typed += ["--seed", "0,3", "-j", "2", "--timeout", "1.5", "-o", "out", "-q", "--json"]
    assert again(*typed, "--fresh", "--failed", "--dry-run", "--fail-fast") == (
        "metabench run --suite 'a b.toml' --algorithm maml --algorithm 'proto*' --seed 0,3"
        " --set maml.inner_lr=0.1 --out out --jobs 2 --timeout 1.5 --quiet --json --failed"
    )


def test_what_fail_fast_left_undone_is_gone_on_with(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metabench.runner.run.Workers", lambda *args, **options: Breaking())
    done = run("-s", "tiny.toml", "-o", "out", "-q", "-x", "-j", "1")
    assert done.exit_code == 1
    summary, _, line = done.stderr.splitlines()
    assert summary == "2 cells: 0 reused, 0 run, 1 failed, 1 not run"
    assert line == "go on with: metabench run --suite tiny.toml --out out --jobs 1 --quiet"


class Breaking:
    """An executor whose jobs all fail."""

    slots = 1

    def start(self, job: Job) -> None:
        self.job = job

    def wait(self) -> tuple[Job, JobResult]:
        return self.job, BROKEN

    def close(self) -> None:
        pass


def test_failed_says_where_nothing_failed(run: Callable[..., Result]) -> None:
    done = run("-s", "tiny.toml", "-o", "out", "-q", "--failed")
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1] == (
        "nothing failed here; leave --failed away to run what is missing"
    )
    prepare("tiny.toml", algorithms="protonet", out="out").run()
    done = run("-s", "tiny.toml", "-a", "protonet", "-o", "out", "-q", "--failed")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (0, "nothing failed here")


# Progress.


@pytest.fixture
def plan(run: object) -> Plan:
    """One finished cell and one to run."""
    cells = prepare("tiny.toml").cells
    return Plan(cells, ["0" * 32, "1" * 32], finished=cells[:1], jobs=[Job("cell", cells[1], "1")])


OK = JobResult(31.24, None, 0.53121)
BROKEN = JobResult(2.0, Failure(status="error", exception="ValueError", message="no\n\x1b[1mgood"))


def watched(watch: Lines, plan: Plan, result: JobResult) -> None:
    [job] = plan.jobs
    watch.preparing("quickdraw: decoding", None)
    watch.preparing("quickdraw: decoding", 1.0)
    watch.planned(plan)
    watch.started(job)
    watch.progress(job, Progress("episodic", 2, 4, 1.5, 0.25))
    watch.ended(job, result)
    watch.timing(2)


def test_a_line_for_what_ends(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    watched(Lines(), plan, OK)
    assert capsys.readouterr() == (
        "",
        "quickdraw: decoding\n"
        "1 of 2 cells finished before: reused\n"
        "[2/2] quickdraw/5w1s2q/maml/conv4-4/seed0 ok 31.2 s, validation 0.5312\n"
        "timing 2 rows\n",
    )


def test_foreign_text_in_a_line_is_plain(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    watched(Lines(), plan, BROKEN)
    line = capsys.readouterr().err.splitlines()[2]
    assert line.endswith("/seed0 error after 2.0 s: ValueError: no good")


def test_numbers_of_lines_stand_below_each_other(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    lines.planned(Plan(plan.cells * 6, plan.keys * 6, jobs=plan.jobs))
    lines.ended(plan.jobs[0], OK)
    assert capsys.readouterr().err.startswith("[ 1/12] quickdraw/")


@pytest.mark.parametrize("result", [OK, BROKEN])
def test_a_terminal_shows_bars_below_the_lines(plan: Plan, result: JobResult) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=40, color_system=None)
    screen = Screen(console)
    [job] = plan.jobs
    with screen.bars:
        screen.planned(plan)
        screen.started(job)
        screen.progress(job, Progress("episodic", 2, 4, 1.5, 0.25))
        screen.bars.refresh()
        shown = out.getvalue()
        screen.ended(job, result)
        screen.timing(3)
        screen.ended(Job("timing", job.cell, "1"), JobResult(1.0))
        screen.bars.refresh()
    text = out.getvalue()
    assert "1 of 2 cells finished before: reused" in text
    assert re.search(r"cells +\S+ +1/2", shown)
    assert re.search(r"seed0 +\S+ +episodic 2/4 +validation 0\.2500", shown)
    assert re.search(r"\[2/2\] quickdraw/5w1s2q/maml/\S+ (ok|error)", text)
    assert re.search(r"timing +\S+ +1/3", text)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_long_name_takes_no_room_from_the_numbers(plan: Plan, width: int) -> None:
    [job] = plan.jobs
    variant = "batch-norm-batch-and-learned-rates"
    job = Job("cell", job.cell.model_copy(update={"variant": variant}), "1")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=40, color_system=None)
    screen = Screen(console)
    clock = itertools.count(0.0, 10.0)
    screen.bars.get_time = lambda: next(clock)  # the speed, and from it the time left
    with screen.bars:
        screen.started(job)
        for step in (1, 3000, 6000):
            screen.progress(job, Progress("supervised", step, 12000, 1.5, 0.25))
        screen.bars.refresh()
        shown = out.getvalue()
    line = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", re.split(r"[\r\n]", shown)[-1])
    assert len(line) <= width
    name, numbers = re.split(r" +[━╸╺]+ +", line)
    assert name.startswith("maml:batch-norm-")
    assert name.endswith("…") or name.endswith("5w1s2q seed0")
    assert re.search(r"^supervised 6000/12000 +validation 0\.2500 +(\d+:)?\d\d:\d\d", numbers)


def test_a_name_for_which_there_is_room_stands_whole(plan: Plan) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    screen = Screen(console)
    screen.started(plan.jobs[0])
    assert [task.description for task in screen.bars.tasks] == [plan.jobs[0].cell.id]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_help_of_run_imports_no_torch() -> None:
    code = (
        "import sys\nfrom metabench.cli import main\n"
        "try:\n    main(['run', '-h'], prog_name='metabench')\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)
