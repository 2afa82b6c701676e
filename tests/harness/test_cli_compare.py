"""`metabench compare`: which things it compares, what it says of them, and with what exit code."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from metabench.cli import main
from metabench.episodes.protocol import Protocol
from metabench.leaderboard.compare import compare_rows
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)
FIVE = Protocol(ways=5, shots=5, queries=3, episodes=60)


@pytest.fixture
def run(results: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("METABENCH_OUT", str(results.store.root))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, ["compare", *args], catch_exceptions=False)

    return invoke


@pytest.fixture
def changed(make_results: Callable[[], Any]) -> Any:
    """Two folders: one row alike in both, one worse in the new one."""
    old, new = make_results(), make_results()
    for results in (old, new):
        results.row("alike", protocol=LONG)
    old.row("worse", skill=0.8, protocol=LONG)
    new.row("worse", skill=0.3, protocol=LONG, code="e" * 32)
    return str(old.store.root), str(new.store.root)


# Two rows.


def test_two_rows_in_sentences(run: Any, results: Any) -> None:
    results.row("protonet", skill=0.8, protocol=LONG)
    results.row("maml", skill=0.3, protocol=LONG)
    results.row("cousin", skill=0.79, protocol=LONG)
    lines = run("protonet", "maml").stdout.splitlines()
    [pair] = compare_rows(StoreSource(results.store), "study", "protonet", "maml").found
    found = pair.found
    assert found is not None
    numbers = f"{found.difference:.4f} [{found.low:.4f}, {found.high:.4f}]"
    assert lines[0] == "suite study: protonet and maml"
    assert "Differences are protonet - maml." in lines
    assert "quickdraw, 5w1s3q, inductive" in lines
    assert f"protonet is better than maml: {numbers}." in lines
    assert any("corrected by Holm for all 3 pairs of the table: p " in line for line in lines)
    assert any(line.startswith("3 seeds in common, 60 episodes; spread of") for line in lines)
    assert not any("To tell" in line for line in lines)
    told = run("maml", "protonet").stdout
    assert f"maml is worse than protonet: -{found.difference:.4f} [-{found.high:.4f}, " in told
    near = run("protonet", "cousin").stdout
    assert "protonet and cousin can't be told apart: " in near
    assert "To tell such a difference with 80% power (p < 0.05 / 3, Holm's strictest):" in near


def test_what_would_be_needed_is_what_was_computed(run: Any, results: Any) -> None:
    results.row("a", skill=0.6, protocol=LONG)
    results.row("b", skill=0.64, protocol=LONG)
    results.row("c", skill=0.62, protocol=LONG, seeds=1)
    for name in "bc":
        source = StoreSource(results.store)
        [pair] = compare_rows(source, "study", "a", name).found
        needed = pair.needed
        assert needed is not None
        told = run("a", name).stdout
        assert (f"- {needed.seeds} more seeds of each;" in told) == (needed.seeds is not None)
        assert (f"{needed.episodes} more episodes." in told) == (needed.episodes is not None)
        assert ("nobody can say from fewer than 3" in told) == (name == "c")
        [row] = json.loads(run("a", name, "--json").stdout)["comparisons"]
        assert row["needed"] == needed._asdict()


def test_several_tables_have_a_summary_and_each_format_the_same_numbers(
    run: Any, results: Any
) -> None:
    for protocol in (LONG, FIVE):
        results.row("a", skill=0.8, protocol=protocol)
        results.row("b", skill=0.4, protocol=protocol)
    results.row("a", protocol=LONG, dataset="omniglot")
    text, markdown = run("a", "b").stdout, run("a", "b", "--format", "markdown").stdout
    data = json.loads(run("a", "b", "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(run("a", "b", "--format", "csv").stdout)))
    assert [row["protocol"] for row in rows] == ["5w1s3q", "5w5s3q"]
    assert [row["difference"] for row in rows] == [
        f"{pair['difference']:.4f}" for pair in data["comparisons"]
    ]
    assert data["direction"] == "a - b"
    assert data["comparisons"][0]["a"]["score"] == pytest.approx(
        data["comparisons"][0]["b"]["score"] + data["comparisons"][0]["difference"]
    )
    assert [row["dataset"] for row in data["only_a"]] == ["omniglot"]
    for row in rows:
        assert text.count(row["difference"]) == markdown.count(row["difference"]) == 2
    assert "## quickdraw, 5w5s3q, inductive" in markdown
    assert "Only a@conv4-32 stands in this table." in text
    narrowed = json.loads(run("a", "b", "-p", "5w5s", "--json").stdout)
    assert len(narrowed["comparisons"]) == 1
    assert narrowed["only_a"] == []


def test_a_failed_row_is_said_and_has_no_numbers(run: Any, results: Any) -> None:
    results.row("a", protocol=LONG)
    results.row("b", protocol=LONG, status="nan")
    done = run("a", "b")
    assert "Not compared. b@conv4-32: nan (3 of 3)" in done.stdout
    assert done.exit_code == 0
    assert run("a", "b", "--fail-on-regression").exit_code == 2
    [row] = json.loads(run("a", "b", "--json").stdout)["comparisons"]
    numbers = ("difference", "low", "high", "p", "p_holm", "needed", "seeds", "episodes")
    assert {row[name] for name in numbers} == {None}


def test_names_are_untrusted(run: Any, results: Any) -> None:
    results.row("[red]x[/red]", protocol=LONG)
    results.row("<b>\x1b[2J=1", protocol=LONG)
    for fmt in ("table", "markdown", "csv", "json"):
        told = run("[red]x[/red]", "<b>*", "--format", fmt).stdout
        assert "\x1b" not in told
        assert "red" in told
        assert fmt != "markdown" or "<b>" not in told


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "there is nothing to compare"),
        (("a",), "there is one thing to compare"),
        (("a", "c"), "there is no row called 'c'"),
        (("a", "a"), "the same row"),
        (("a", "b", "-s", "studdy"), "there are study"),
        (("a", "b", "-a", "x"), "two rows are named already"),
        (("a", "--versions"), "say -a a"),
        (("a", "b", "-o", "nowhere"), "there are no results in"),
        (("a", "b", "-p", "9w"), "there is no row called 'a'"),
    ],
)
def test_what_cannot_be_meant_is_told_in_two_lines(
    run: Any, results: Any, args: tuple[str, ...], told: str
) -> None:
    results.row("a")
    results.row("b")
    done = run(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_of_several_suites_one_must_be_named(run: Any, results: Any) -> None:
    for suite in ("study", "other"):
        results.row("a", suite=suite)
        results.row("b", suite=suite)
    done = run("a", "b")
    assert done.exit_code == 2
    assert "say it with -s: there are other, study" in done.stderr
    assert run("a", "b", "-s", "other").exit_code == 0
    assert run("a", "b", "-s", "some/where/other.toml").exit_code == 0


# Two folders.


def test_two_folders_row_by_row(run: Any, changed: tuple[str, str]) -> None:
    old, new = changed
    text = run(old, new).stdout
    assert f"new: {new}\nold: {old}\n" in text
    assert "2 rows compared: 1 with the same predictions, 1 not." in text
    [row] = [line for line in text.splitlines() if line.startswith("worse@conv4-32  worse")]
    assert row.split()[2].startswith("-0.")
    data = json.loads(run(old, new, "--json").stdout)
    assert (data["compared"], data["direction"]) == ("folders", "new - old")
    by = {pair["new"]["algorithm"]: pair for pair in data["comparisons"]}
    assert by["alike"]["verdict"] == "same predictions"
    assert by["worse"]["difference"] == pytest.approx(
        by["worse"]["new"]["score"] - by["worse"]["old"]["score"]
    )
    assert by["worse"]["changes"][0].startswith("code of algorithm")
    assert "1 row compared" in run(old, new, "-a", "alike").stdout


@pytest.mark.parametrize(
    ("swapped", "args", "code"),
    [
        (False, (), 1),
        (True, (), 0),
        (False, ("-a", "alike"), 0),
    ],
)
def test_only_a_significant_loss_fails(
    run: Any, changed: tuple[str, str], swapped: bool, args: tuple[str, ...], code: int
) -> None:
    folders = changed[::-1] if swapped else changed
    done = run(*folders, *args, "--fail-on-regression")
    assert done.exit_code == code
    assert ("1 significantly worse" in done.stderr) == (code == 1)
    assert run(*folders, *args).exit_code == 0


def test_one_seed_that_came_out_worse_fails_too(run: Any, make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    old.add("a", skill=0.9, protocol=LONG)
    new.add("a", skill=0.3, protocol=LONG, code="e" * 32)
    folders = str(old.store.root), str(new.store.root)
    assert "worse (checkpoints)" in run(*folders).stdout
    assert run(*folders, "--fail-on-regression").exit_code == 1


def test_a_row_that_fails_now_fails(run: Any, make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    for results, status in ((old, "ok"), (new, "error")):
        results.row("a", protocol=LONG)
        results.row("b", protocol=LONG, status=status)
    folders = [str(results.store.root) for results in (old, new)]
    done = run(*folders, "--fail-on-regression")
    assert done.exit_code == 1
    assert "1 failed that were finished before" in done.stderr
    assert run(*folders[::-1], "--fail-on-regression").exit_code == 0


def test_rows_win_over_folders_of_their_name_and_it_is_said(
    run: Any, results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    results.row("a", protocol=LONG)
    results.row("b", skill=0.2, protocol=LONG)
    done = run("a", "b")
    assert "a is better than b" in done.stdout
    assert "and folders too: rows are compared (write ./a for the folder)" in done.stderr
    assert "neither results nor published tables in a" in run("a", "./b").stderr
    assert "a is a folder" in run("a", "d").stderr


def test_published_tables_are_a_folder_like_any(
    run: Any, make_results: Callable[[], Any], tmp_path: Path
) -> None:
    from metabench.publishing.evidence import Proof
    from metabench.publishing.published import published, table_name

    results = make_results()
    results.row("a", protocol=LONG)
    results.row("b", skill=0.3, protocol=LONG)
    source = StoreSource(results.store)
    rows = table_rows(source, "study")
    files = {table_name("study"): published("study", rows, source).to_bytes()}
    for row in rows:
        for record in row.records:
            files |= Proof.of(source, record).files()
    for name, data in files.items():
        path = tmp_path / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tables, folder = str(tmp_path / "tables"), str(results.store.root)
    assert "2 rows compared: 2 with the same predictions" in run(tables, folder).stdout
    assert run("a", "b", "-o", tables).stdout == run("a", "b", "-o", folder).stdout
    assert "which keep one version" in run("--versions", "-o", tables).stderr


# Versions.


def test_versions_of_the_code_in_one_folder(run: Any, results: Any) -> None:
    for year, (skill, code) in enumerate([(0.8, "1"), (0.3, "2")]):
        for key in results.row("a", skill=skill, code=code * 32, protocol=LONG):
            path = results.store.folder(key) / "run.json"
            noted = json.loads(path.read_text())
            path.write_text(json.dumps(noted | {"started": f"202{year}-01-01T00:00:00+00:00"}))
    results.row("b", protocol=LONG)
    done = run("--versions", "--fail-on-regression")
    assert done.exit_code == 1
    assert "1 row compared: 0 with the same predictions, 1 not." in done.stdout
    assert "no earlier version\nquickdraw, 5w1s3q: b@conv4-32" in done.stdout
    [pair] = json.loads(run("--versions", "--json").stdout)["comparisons"]
    codes = f"({pair['old']['code_version']} -> {pair['new']['code_version']})"
    assert pair["changes"] == [f"code of algorithm {codes}"]
    alone = run("--versions", "-a", "b")
    assert (alone.exit_code, "No row could be compared." in alone.stdout) == (0, True)
    assert run("--versions", "-a", "b", "--fail-on-regression").exit_code == 2


def test_a_shell_offers_algorithms_then_paths() -> None:
    def offered(*words: str) -> list[tuple[str, str]]:
        *before, last = words
        found = ShellComplete(main, {}, "metabench", "_X").get_completions(before, last)
        return [(item.value, item.type) for item in found]

    assert offered("compare", "proton") == [("protonet", "plain")]
    assert offered("compare", "protonet", "results-") == [("results-", "file")]
