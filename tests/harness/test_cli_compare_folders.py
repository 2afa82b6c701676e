"""`metabench compare` of two folders and of versions: what it says, and with what exit code."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metabench.episodes.protocol import Protocol
from metabench.leaderboard.rows import table_rows
from metabench.leaderboard.source import StoreSource

LONG = Protocol(ways=5, shots=1, queries=3, episodes=60)


@pytest.fixture
def changed(make_results: Callable[[], Any]) -> Any:
    """Two folders: one row alike in both, one worse in the new one."""
    old, new = make_results(), make_results()
    for results in (old, new):
        results.row("alike", protocol=LONG)
    old.row("worse", skill=0.8, protocol=LONG)
    new.row("worse", skill=0.3, protocol=LONG, code="e" * 32)
    return str(old.store.root), str(new.store.root)


# Two folders.


def test_two_folders_row_by_row(compare: Any, changed: tuple[str, str]) -> None:
    old, new = changed
    text = compare(old, new).stdout
    assert f"suite study: {old} (old) and {new} (new)\n" in text
    assert "2 of 2 rows compared.\nsame predictions: 1\nother labels: 1, 0 sig" in text
    assert "same predictions\nquickdraw, 5w1s3q: alike@conv4-32\n" in text
    [row] = [line for line in text.splitlines() if line.startswith("worse@conv4-32  worse")]
    assert row.split()[2].startswith("-0.")
    data = json.loads(compare(old, new, "--json").stdout)
    assert (data["compared"], data["direction"]) == ("folders", "new - old")
    by = {pair["new"]["algorithm"]: pair for pair in data["comparisons"]}
    assert by["alike"]["verdict"] == "same predictions"
    assert by["alike"]["difference"] == 0.0
    assert {by["alike"][name] for name in ("low", "high", "p", "p_holm", "basis", "df")} == {None}
    assert by["worse"]["difference"] == pytest.approx(
        by["worse"]["new"]["score"] - by["worse"]["old"]["score"]
    )
    assert by["worse"]["changes"][0].startswith("code of algorithm")
    assert "1 of 1 row compared" in compare(old, new, "-a", "alike").stdout


@pytest.mark.parametrize(
    ("swapped", "args", "code"),
    [
        (False, (), 1),
        (True, (), 0),
        (False, ("-a", "alike"), 0),
    ],
)
def test_only_a_significant_loss_fails(
    compare: Any, changed: tuple[str, str], swapped: bool, args: tuple[str, ...], code: int
) -> None:
    folders = changed[::-1] if swapped else changed
    done = compare(*folders, *args, "--fail-on-regression")
    assert done.exit_code == code
    assert ("1 significantly worse" in done.stderr) == (code == 1)
    assert compare(*folders, *args).exit_code == 0


def test_one_seed_that_came_out_worse_fails_too(
    compare: Any, make_results: Callable[[], Any]
) -> None:
    old, new = make_results(), make_results()
    old.add("a", skill=0.9, protocol=LONG)
    new.add("a", skill=0.3, protocol=LONG, code="e" * 32)
    folders = str(old.store.root), str(new.store.root)
    assert "worse (checkpoints)" in compare(*folders).stdout
    done = compare(*folders, "--fail-on-regression")
    assert (done.exit_code, "1 of these on checkpoints only" in done.stderr) == (1, True)


def test_a_row_that_fails_now_fails(compare: Any, make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    for results, status in ((old, "ok"), (new, "error")):
        results.row("a", protocol=LONG)
        results.row("b", protocol=LONG, status=status)
    folders = [str(results.store.root) for results in (old, new)]
    done = compare(*folders, "--fail-on-regression")
    assert done.exit_code == 1
    assert "1 failed that were finished before" in done.stderr
    assert compare(*folders[::-1], "--fail-on-regression").exit_code == 0


def test_published_tables_are_a_folder_like_any(
    compare: Any, make_results: Callable[[], Any], tmp_path: Path
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
    assert "2 of 2 rows compared.\nsame predictions: 2" in compare(tables, folder).stdout
    assert compare("a", "b", "-o", tables).stdout == compare("a", "b", "-o", folder).stdout
    assert "which keep one version" in compare("--versions", "-o", tables).stderr


def test_a_row_that_could_not_be_judged_is_no_pass(
    compare: Any, make_results: Callable[[], Any]
) -> None:
    old, new = make_results(), make_results()
    for results in (old, new):
        results.row("same", protocol=LONG)
    old.row("gone", protocol=LONG)
    for seed, code in enumerate("aab"):
        old.add("apart", seed, protocol=LONG)
        new.add("apart", seed, protocol=LONG, code=code * 32)
    folders = [str(results.store.root) for results in (old, new)]
    assert "1 of 2 rows compared; 1 not, 1 gone." in compare(*folders).stdout
    done = compare(*folders, "--fail-on-regression")
    assert (done.exit_code, "1 of 2 rows compared; 1 not, 1 gone" in done.stderr) == (2, True)
    assert compare(*folders, "-a", "same", "--fail-on-regression").exit_code == 0


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_failed_part_is_a_failed_row(
    compare: Any, make_results: Callable[[], Any], broken: str
) -> None:
    """Whichever of the parts of a row that came apart stands first in the table."""
    old, new = make_results(), make_results()
    for results in (old, new):
        results.row("same", protocol=LONG)
    old.row("apart", seeds=2, protocol=LONG)
    for seed, code in enumerate("ab"):
        status = "nan" if code == broken else "ok"
        new.add("apart", seed, protocol=LONG, code=code * 32, status=status)
    folders = [str(results.store.root) for results in (old, new)]
    done = compare(*folders, "--fail-on-regression")
    assert (done.exit_code, "1 failed that were finished before" in done.stderr) == (1, True)


def test_folders_that_differ_in_seeds_say_so(compare: Any, make_results: Callable[[], Any]) -> None:
    old, new = make_results(), make_results()
    for name, code in {"same": "a", "other": "e"}.items():
        old.row(name, seeds=3, protocol=LONG)
        new.row(name, seeds=5, protocol=LONG, code=code * 32, luck=name == "other")
    text = compare(str(old.store.root), str(new.store.root)).stdout
    assert "Seeds differ: only those that both have are compared" in text
    assert "same@conv4-32 (seeds in common: 3 of 5 and 3)" in text
    [row] = [line for line in text.splitlines() if line.startswith("other@conv4-32  ")][:1]
    assert row.endswith("3 of 5 and 3")


def test_a_row_whose_inference_flipped_splits_no_section(
    compare: Any, make_results: Callable[[], Any]
) -> None:
    old, new = make_results(), make_results()
    for name, mode in {"a": "inductive", "b": "transductive", "c": "inductive"}.items():
        old.row(name, protocol=LONG)
        new.row(name, protocol=LONG, code="e" * 32, inference=mode)
    lines = compare(str(old.store.root), str(new.store.root)).stdout.splitlines()
    titles = [line for line in lines if line.startswith("quickdraw, ")]
    flipped = "quickdraw, 5w1s3q, inductive -> transductive"
    assert sorted(titles) == ["quickdraw, 5w1s3q, inductive", flipped]


def test_folders_that_cannot_be_meant(
    compare: Any, make_results: Callable[[], Any], tmp_path: Path
) -> None:
    old, new, other = make_results(), make_results(), make_results()
    for results, suite in ((old, "study"), (new, "study"), (other, "more")):
        results.row("a", suite=suite)
    here, there, elsewhere = (str(results.store.root) for results in (old, new, other))
    broken = tmp_path / "tables"
    broken.mkdir()
    (broken / "study.json").write_text("{}")
    told = {
        (here, f"{there}x"): f"there is no folder {there}x",
        (here, here): "are the same folder",
        (here, there, "-a", "nope"): "there is no row under -a nope",
        (here, there, "-s", "studdy"): "did you mean 'study'?",
        (here, elsewhere): f"{here} has study; {elsewhere} has more",
        (here, str(broken)): "study.json",
    }
    for args, text in told.items():
        done = compare(*args, "--fail-on-regression")
        assert (done.exit_code, text in done.stderr) == (2, True), done.stderr


# Versions.


def test_versions_of_the_code_in_one_folder(compare: Any, results: Any) -> None:
    results.row("a", skill=0.8, code="1" * 32, protocol=LONG, started="2020-01-01T08:15:00")
    results.row("a", skill=0.3, code="2" * 32, protocol=LONG, started="2021-01-01T08:15:00")
    results.row("b", protocol=LONG)
    done = compare("--versions", "--fail-on-regression")
    assert done.exit_code == 1
    assert "1 of 1 row compared." in done.stdout
    assert "2020-01-01 08:15" in done.stdout
    assert "no earlier version\nquickdraw, 5w1s3q: b@conv4-32" in done.stdout
    [pair] = json.loads(compare("--versions", "--json").stdout)["comparisons"]
    codes = f"({pair['old']['code_version']} -> {pair['new']['code_version']})"
    assert pair["changes"] == [f"code of algorithm {codes}"]
    alone = compare("--versions", "-a", "b")
    assert (alone.exit_code, "No row could be compared" in alone.stdout) == (0, True)
    assert compare("--versions", "-a", "b", "--fail-on-regression").exit_code == 2


def test_a_row_that_fails_altogether_under_new_code_fails(compare: Any, results: Any) -> None:
    results.row("a", code="1" * 32, protocol=LONG, started="2020")
    results.row("a", code="2" * 32, protocol=LONG, started="2021", status="error")
    done = compare("--versions", "--fail-on-regression")
    assert (done.exit_code, "1 failed that were finished before" in done.stderr) == (1, True)
    assert "new: error (3 of 3)" in done.stdout


def test_a_csv_has_its_columns_whatever_is_in_it(compare: Any, results: Any) -> None:
    results.row("a", skill=0.95, code="1" * 32, protocol=LONG, started="2020")
    nothing = compare("--versions", "--format", "csv").stdout
    results.row("a", skill=0.2, code="2" * 32, protocol=LONG, started="2021")
    full = compare("--versions", "--format", "csv").stdout
    assert nothing.startswith("dataset,protocol,inference,metric,new,old,new_score")
    assert full.splitlines()[0] == nothing.rstrip("\n")
    [row] = csv.DictReader(io.StringIO(full))
    assert 0 < float(row["p"]) == pytest.approx(float(row["p_holm"]))
