"""`metabench compare` of two rows: what it says of them, and what cannot be meant."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from metabench.cli import main
from metabench.episodes.protocol import Protocol
from metabench.leaderboard.compare import compare_rows
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)
FIVE = Protocol(ways=5, shots=5, queries=3, episodes=60)


def table(results: Any) -> Any:
    return table_rows(StoreSource(results.store), "study")


# Two rows.


def test_two_rows_in_sentences(compare: Any, results: Any) -> None:
    results.row("protonet", skill=0.8, protocol=LONG)
    results.row("maml", skill=0.3, protocol=LONG)
    results.row("cousin", skill=0.79, protocol=LONG)
    lines = compare("protonet", "maml").stdout.splitlines()
    [pair] = compare_rows(table(results), "protonet", "maml").found
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
    told = compare("maml", "protonet").stdout
    assert f"maml is worse than protonet: -{found.difference:.4f} [-{found.high:.4f}, " in told
    near = compare("protonet", "cousin").stdout
    assert "protonet and cousin can't be told apart: " in near
    assert "To tell such a difference with 80% power (p < 0.05 / 3, Holm's strictest):" in near


def test_what_would_be_needed_is_what_was_computed(compare: Any, results: Any) -> None:
    results.row("a", skill=0.6, protocol=LONG)
    results.row("b", skill=0.64, protocol=LONG)
    results.row("c", skill=0.62, protocol=LONG, seeds=1)
    for name in "bc":
        [pair] = compare_rows(table(results), "a", name).found
        needed = pair.needed
        assert needed is not None
        told = compare("a", name).stdout
        seeds, episodes = (
            f"{needed.seeds} more in common;",
            f"alone: {needed.episodes or 0:,} more.",
        )
        assert (seeds in told) == (needed.seeds is not None)
        assert (episodes in told) == (needed.episodes is not None)
        assert ("fewer than 3 in common don't say how many" in told) == (name == "c")
        [row] = json.loads(compare("a", name, "--json").stdout)["comparisons"]
        assert row["needed"] == needed._asdict()


def test_several_tables_have_a_summary_and_each_format_the_same_numbers(
    compare: Any, results: Any
) -> None:
    for protocol in (LONG, FIVE):
        results.row("a", skill=0.8, protocol=protocol)
        results.row("b", skill=0.4, protocol=protocol)
    results.row("a", protocol=LONG, dataset="omniglot")
    text, markdown = compare("a", "b").stdout, compare("a", "b", "--format", "markdown").stdout
    data = json.loads(compare("a", "b", "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(compare("a", "b", "--format", "csv").stdout)))
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
    narrowed = json.loads(compare("a", "b", "-p", "5w5s", "--json").stdout)
    assert len(narrowed["comparisons"]) == 1
    assert narrowed["only_a"] == []


def test_a_failed_row_is_said_and_has_no_numbers(compare: Any, results: Any) -> None:
    results.row("a", protocol=LONG)
    results.row("b", protocol=LONG, status="nan")
    done = compare("a", "b")
    assert "Not compared. b@conv4-32: nan (3 of 3)" in done.stdout
    assert done.exit_code == 0
    assert compare("a", "b", "--fail-on-regression").exit_code == 2
    [row] = json.loads(compare("a", "b", "--json").stdout)["comparisons"]
    numbers = ("difference", "low", "high", "p", "p_holm", "needed", "seeds", "episodes")
    assert {row[name] for name in numbers} == {None}


def test_names_are_untrusted(compare: Any, results: Any) -> None:
    results.row("[red]x[/red]", protocol=LONG)
    results.row("<b>\x1b[2J=1", protocol=LONG)
    for fmt in ("table", "markdown", "csv", "json"):
        told = compare("[red]x[/red]", "<b>*", "--format", fmt).stdout
        assert "\x1b" not in told
        assert "red" in told
        assert fmt != "markdown" or "<b>" not in told


FORGED = "FORGED: nothing is worse"


def test_no_name_forges_a_line(compare: Any, make_results: Callable[[], Any], results: Any) -> None:
    """Wherever it stands: compared, not compared, failed, gone, come, unknown."""
    old, new = make_results(), make_results()
    for name, where in {"a": (results, old, new), "b": (results, old), "c": (results, new)}.items():
        for folder in where:
            folder.row(f"{name}\n{FORGED}", variant=f"v\r{FORGED}", backbone=f"x\u2028{FORGED}")
    new.row(f"d\n{FORGED}", status="nan")
    old.row(f"d\n{FORGED}")
    results.row(f"d\n{FORGED}", status="nan")
    folders = [str(folder.store.root) for folder in (old, new)]
    for args in (("a*", "b*"), ("a*", "d*"), folders, ["--versions"]):
        for fmt in ("table", "markdown"):
            told = compare(*args, "--format", fmt).stdout
            assert FORGED in told
            assert not any(line.startswith(FORGED) for line in told.splitlines())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "there is nothing to compare"),
        (("a",), "there is one thing to compare"),
        (("a", "c"), "there is no row called 'c'"),
        (("a", "a"), "the same row"),
        (("a", "b", "-s", "studdy"), "did you mean 'study'?"),
        (("a", "b", "-a", "x"), "two rows are named already"),
        (("a", "--versions"), "say -a a"),
        (("a", "b", "-o", "nowhere"), "there are no results in"),
        (("a", "b", "-p", "9w"), "there is no row under -p 9w"),
        (("a", "b", "--dataset", "omni"), "there is no row under --dataset omni"),
        (("a", ""), "one of the names is empty"),
        (("--versions", "-a", "nope"), "there is no row under -a nope"),
        (("a", "old/b"), "and no folder old/b"),
        (("old/a", "old/b", "-o", "nowhere"), "there is no folder old/a"),
    ],
)
def test_what_cannot_be_meant_is_told_in_two_lines(
    compare: Any, results: Any, args: tuple[str, ...], told: str
) -> None:
    results.row("a")
    results.row("b")
    done = compare(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_of_several_suites_one_must_be_named(compare: Any, results: Any) -> None:
    for suite in ("study", "other"):
        results.row("a", suite=suite)
        results.row("b", suite=suite)
    done = compare("a", "b")
    assert done.exit_code == 2
    assert "say it with -s: there are other, study" in done.stderr
    assert compare("a", "b", "-s", "other").exit_code == 0
    assert compare("a", "b", "-s", "some/where/other.toml").exit_code == 0


def test_what_is_told_is_of_the_seeds_in_common(compare: Any, results: Any) -> None:
    for seed, skill in enumerate((0.6, 0.6, 0.6, 0.1, 0.1)):
        results.add("a", seed, skill=skill, protocol=LONG)
    results.row("b", skill=0.5, protocol=LONG)
    results.row("c", seeds=13, skill=0.5, protocol=LONG)
    told = compare("a", "b").stdout
    assert "3 seeds in common, of 5 and 3; 60 episodes; " in told
    [row] = json.loads(compare("a", "b", "--json").stdout)["comparisons"]
    assert row["a_score"] - row["b_score"] == pytest.approx(row["difference"])
    assert (row["seeds"], row["a_seeds"], row["b_seeds"]) == (3, 5, 3)
    assert f"a {row['a_score']:.4f}, b {row['b_score']:.4f}." in told
    results.add("d", 20, skill=0.5, protocol=LONG)
    assert "for all 3 pairs of the table with 3 or more seeds in common" in compare("a", "b").stdout
    few = compare("a", "d").stdout
    assert "for all 3 pairs of the table with under 3 seeds in common" in few
    assert "0 seeds in common, of 5 and 1; 60 episodes; over all runs of each." in few


def test_rows_of_few_seeds_in_common_cannot_fail_or_pass(compare: Any, results: Any) -> None:
    results.row("a", seeds=2, skill=0.2, protocol=LONG)
    results.row("b", seeds=2, skill=0.9, protocol=LONG)
    done = compare("a", "b", "--fail-on-regression")
    assert (done.exit_code, "a is worse than b" in done.stdout) == (2, True)
    assert "these checkpoints only" in done.stderr
    assert "run the same 3 seeds of both" in done.stderr


def test_rows_win_over_folders_of_their_name_and_it_is_said(
    compare: Any, results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    results.row("a", protocol=LONG)
    results.row("b", skill=0.2, protocol=LONG)
    done = compare("a", "b")
    assert "a is better than b" in done.stdout
    assert "and folders too: rows are compared (write ./a for the folder)" in done.stderr
    assert "neither results nor published tables in a" in compare("a", "./b").stderr
    assert "a is a folder" in compare("a", "d").stderr


def test_a_shell_offers_algorithms_then_paths() -> None:
    def offered(*words: str) -> list[tuple[str, str]]:
        *before, last = words
        found = ShellComplete(main, {}, "metabench", "_X").get_completions(before, last)
        return [(item.value, item.type) for item in found]

    assert offered("compare", "proton") == [("protonet", "plain")]
    assert offered("compare", "protonet", "results-") == [("results-", "file")]
