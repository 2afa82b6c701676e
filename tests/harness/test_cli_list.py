"""The command line's frame, and `metabench list`: what it prints and how it refuses."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

import metabench
from metabench import plugins
from metabench.cli import main
from metabench.cli.app import VERBS
from metabench.cli.list import COLUMNS
from metabench.errors import DataMissingError
from metabench.registry import Registry, make_entry
from metabench.store.store import Store


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize("what", COLUMNS)
def test_each_kind_is_listed_in_each_format(what: str) -> None:
    rows = json.loads(run("list", what, "--json").stdout)
    assert all(tuple(row) == COLUMNS[what] for row in rows)
    assert run("list", what, "--format", "json").stdout == run("list", what, "--json").stdout
    as_csv = list(csv.DictReader(io.StringIO(run("list", what, "--format", "csv").stdout)))
    assert as_csv == rows
    for fmt in ("table", "markdown"):
        text = run("list", what, "--format", fmt).stdout
        assert all(row["name"] in text for row in rows)
        assert len(text.splitlines()) == 2 + len(rows)


def test_algorithms_are_listed_with_their_facts() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "algorithms", "--json").stdout)}
    assert rows["protonet"] == {
        "name": "protonet",
        "family": "metric",
        "inference": "inductive",
        "reference": "Snell et al. 2017, arXiv:1703.05175",
        "summary": "Classifies a query by its distance to the mean embedding of each class.",
        "plugin": "builtin",
    }


def test_without_an_argument_everything_is_listed() -> None:
    everything = json.loads(run("list", "--json").stdout)
    assert list(everything) == list(COLUMNS)
    assert everything["datasets"] == json.loads(run("list", "datasets", "--json").stdout)
    lines = run("list").stdout.splitlines()
    assert [line for line in lines if line in COLUMNS] == list(COLUMNS)
    assert "## plugins" in run("list", "--format", "markdown").stdout
    refused = run("list", "--format", "csv")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "a CSV holds one table" in refused.stderr


def test_a_piped_table_is_as_wide_as_it_needs_to_be(metabench) -> None:
    narrow = metabench("list", "algorithms", COLUMNS="20")
    assert narrow.stdout == metabench("list", "algorithms").stdout
    assert "Moves the initialisation towards the weights that training on a task" in narrow.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_table_on_a_terminal_folds_to_its_width() -> None:
    import pty

    outer, inner = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-m", "metabench", "list", "backbones"]
    subprocess.run(command, stdout=inner, env=environment, check=True)
    os.close(inner)
    text = os.read(outer, 65536).decode()
    os.close(outer)
    assert max(map(len, text.splitlines())) <= 80
    assert "resnet12" in text


def test_foreign_text_is_escaped_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    from metabench import Lazy

    hostile = Lazy(
        "evil",
        "evil:Evil",
        family="=cmd|' /C calc'!A0",
        inference="inductive",
        reference="\x1b]8;;http://evil\x07a|b\x1b]8;;\x07 [link](x)",
        summary="\x1b[2J<script>\u202egnp.exe\nnext [red]line[/red]",
    )
    registry = Registry()
    registry.add(make_entry("algorithm", hostile, "p\x1b[31m", "nobody"))
    monkeypatch.setattr(plugins, "registry", lambda strict=False: registry)
    monkeypatch.setattr("metabench.cli.list.registry", lambda: registry)

    table = run("list", "algorithms").stdout
    assert "a|b [link](x)" in table
    assert "<script>gnp.exe next [red]line[/red]" in table
    markdown = run("list", "algorithms", "--format", "markdown").stdout
    assert r"a\|b \[link\](x)" in markdown
    assert "&lt;script&gt;" in markdown
    [row] = csv.DictReader(io.StringIO(run("list", "algorithms", "--format", "csv").stdout))
    assert row["family"].startswith("'=cmd")
    as_json = run("list", "algorithms", "--json").stdout
    assert json.loads(as_json)[0]["reference"] == hostile.reference
    for text in (table, markdown, as_json):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["list", "algorithm"], "Did you mean 'algorithms'?"),
        (["list", "--fromat", "csv"], "--format"),
        (["list", "--format", "jsn"], "Did you mean 'json'?"),
        (["list", "suites", "twice"], "unexpected extra argument"),
        (["completion", "bsh"], "Did you mean 'bash'?"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_two_lines(args: list[str], told: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    first, second = result.stderr.splitlines()
    assert first.startswith("metabench: ")
    assert second.startswith("see ")


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (DataMissingError("no images \x1b[1mhere", "get them"), 2, "no images here\nget them\n"),
        (DataMissingError("no images"), 2, "no images\n"),
        (OSError(28, "No space left on device", "/out/x"), 2, "No space left on device: /out/x\n"),
        (PermissionError(13, "Permission denied", "/out"), 2, "Permission denied: /out\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    error: BaseException, code: int, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Registry:
        raise error

    monkeypatch.setattr("metabench.cli.list.registry", fail)
    result = run("list")
    assert (result.exit_code, result.stderr) == (code, f"metabench: {printed}")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metabench.cli.list.registry", lambda: 1 // 0)
    assert isinstance(run("list").exception, ZeroDivisionError)


def test_a_reader_who_leaves_is_no_error(metabench) -> None:
    script = f"{sys.executable} -m metabench list --json | head -c 5; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('{\n  "')
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_says_the_same_of_itself(verb: str) -> None:
    command = import_module(f"metabench.cli.{verb}").command
    assert command.help.strip().splitlines()[0] == VERBS[verb]
    short, long = run(verb, "-h"), run(verb, "--help")
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert verb in run("-h").stdout


def test_version_and_module_entry_point(metabench) -> None:
    import metabench as package

    assert metabench("--version").stdout.split()[-1] == package.__version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_words(shell: str, metabench) -> None:
    script = metabench("completion", shell)
    assert script.returncode == 0
    assert "_METABENCH_COMPLETE" in script.stdout


def completed(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What bash is offered for the last word of a line; no process of it may load PyTorch."""
    ask = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    code = (
        "import sys\nfrom metabench.cli import main\ntry:\n    main(prog_name='metabench')\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **ask, **environment, "_METABENCH_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_completion_knows_verbs_and_kinds() -> None:
    done = completed("metabench list ba")
    assert (done.stdout.split(), done.stderr) == (["plain,backbones"], "")


def test_completion_knows_registered_names_and_is_silent(
    third_party: Callable[[str], Path],
) -> None:
    broken = {"PYTHONPATH": str(third_party("metabench-raises-at-import"))}
    done = completed("metabench run -s smoke -a proton", **broken)
    assert (done.stdout.split(), done.stderr) == (["plain,protonet"], "")
    done = completed("metabench nothing -a proton")
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("run -b conv", ["conv4", "conv6"]),
        ("show torchv", ["torchvision", "torchvision:"]),
        ("run --dataset ", ["omniglot", "quickdraw"]),
        ("run -s smo", ["smoke"]),
        ("run -s mi", ["mine.toml"]),
        ("run -s sub/", ["sub/other.toml"]),
        ("run -s nowhere/x", ["nowhere/x"]),  # the shell's own paths
        ("leaderboard -s fewshot-f", ["fewshot-full"]),
        ("show quick", ["quickdraw"]),
        ("show suite:om", ["suite:omniglot"]),
        ("show omni", ["omniglot-quick"]),
        ("data prepare quickdraw omn", ["omniglot"]),
    ],
)
def test_names_and_suite_files_are_completed(
    line: str, offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("mine.toml", "mine.txt", "sub/other.toml"):
        (tmp_path / name).touch()
    *words, last = line.split(" ")
    found = ShellComplete(main, {}, "metabench", "_X").get_completions(words, last)
    assert [item.value for item in found] == offered


WARNING = """
import warnings

from metabench import hookimpl

warnings.warn("old \x1b[31mways", DeprecationWarning, stacklevel=2)
warnings.warn("this is odd", stacklevel=1)


@hookimpl
def metabench_register_algorithms():
    return []
"""


def test_warnings_of_python_are_lines_of_our_own(metabench, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(WARNING)
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[metabench]\nodd = odd\n")
    done = metabench("list", "suites", path=(tmp_path,))
    [line] = done.stderr.splitlines()
    assert line == f"metabench: warning: UserWarning: this is odd ({tmp_path / 'odd.py'}:7)"
    in_a_worker = (
        "import os, warnings; from metabench.runner.worker import initialise\n"
        "initialise(os.getppid()); warnings.warn('this is odd')"
    )
    done = subprocess.run(
        [sys.executable, "-c", in_a_worker], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""  # the run's own process said it


@pytest.mark.parametrize("verb", ["status", "clean", "leaderboard -s x", "show 12345678"])
def test_a_tilde_is_the_home_folder_for_every_verb(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store.open(tmp_path / "out")
    words = verb.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_OUT", "~/out")
    by_variable = CliRunner().invoke(main, words)
    monkeypatch.delenv("METABENCH_OUT")
    by_option = CliRunner().invoke(main, [*words, "--out", "~/out"])
    absolute = CliRunner().invoke(main, [*words, "--out", str(store.root)])
    told = [(d.exit_code, d.stdout, d.stderr) for d in (by_variable, by_option, absolute)]
    assert told[0] == told[1] == told[2]
    assert "there are no results in" not in absolute.stderr
    nobody = CliRunner().invoke(main, [*words, "--out", "~nobody-of-this-name/out"])
    assert (nobody.exit_code, len(nobody.stderr.splitlines())) == (2, 2)


def test_a_tilde_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = json.loads(CliRunner().invoke(main, ["data", "list", "--json", "-d", "~/d"]).stdout)
    assert rows[0]["path"].startswith(str(tmp_path / "d"))


def test_the_public_api_is_complete_and_the_same_in_all_three_places() -> None:
    exported = set(metabench._MODULE_OF) | {"__version__"}
    assert set(metabench.__all__) == exported
    assert len(metabench.__all__) == len(exported)
    assert exported <= set(dir(metabench))
    for name in metabench.__all__:
        assert getattr(metabench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Algorithms'"):
        metabench.Algorithms  # noqa: B018
