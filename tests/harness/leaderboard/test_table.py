"""The leaderboard: recomputed numbers, honest gaps, no mixing, the same file twice."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from made_up_tables import TIMES, by_algorithm, few, files

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol
from metabench.errors import StoreError, UnknownNameError
from metabench.leaderboard.numbers import NUMBERS
from metabench.leaderboard.rows import COLUMNS, table_rows
from metabench.leaderboard.source import StoreSource
from metabench.leaderboard.table import leaderboard, write_leaderboard
from metabench.store.record import RunInfo


def test_the_columns_are_those_that_were_promised_in_their_order(results: Any) -> None:
    results.row()
    header, _ = files(results)[0].splitlines()
    assert header == (
        "suite,dataset,protocol,algorithm,variant,backbone,inference,metric,score,ci95,seed_std,"
        "seed_ci95,seeds,episodes,rank,disjoint,disjoint_score,ci95_items,ci95_classes,macro_f1,"
        "worst_episodes,worst_class,worst_class_id,ece,nll,adapt_ms,predict_ms,train_s,"
        "train_items,budget,parameters,status,device,protocol_digest,dataset_digest,"
        "recipe_digest,code_version,trust"
    )
    [row] = leaderboard(results.store, "study")
    assert list(row) == COLUMNS == header.split(",")


def test_a_row_says_what_it_is(results: Any) -> None:
    results.row(variant="first-order", content="12e45678" + "0" * 24)
    [row] = leaderboard(results.store, "study")
    protocol = results.store.suite("study")[0].labels["protocol_digest"]
    told = {k: row[k] for k in COLUMNS if k not in {*NUMBERS, *TIMES}}
    assert told == {
        "suite": "study",
        "dataset": "quickdraw",
        "protocol": "5w1s3q",
        "algorithm": "maml",
        "variant": "first-order",
        "backbone": "conv4-32",
        "inference": "inductive",
        "metric": "accuracy",
        "seeds": 3,
        "episodes": 8,
        "rank": 1,
        "train_items": 80000,
        "budget": 800,
        "parameters": 1896,
        "status": "ok",
        "device": "cpu",
        "protocol_digest": f"p-{protocol[:8]}",
        "dataset_digest": "d-12e45678",
        "recipe_digest": Recipe(steps=800).short_digest,
        "code_version": row["code_version"],
        "trust": "recomputed",
    }
    assert re.fullmatch("c-[0-9a-f]{8}", str(row["code_version"]))


@few
@given(
    skills=st.lists(st.floats(0.2, 0.9), min_size=1, max_size=4),
    episodes=st.integers(2, 12),
)
def test_numbers_are_those_of_the_episodes_and_never_the_records(
    make_results: Callable[[], Any], skills: list[float], episodes: int
) -> None:
    results = make_results()
    protocol = Protocol(ways=3, shots=1, queries=4, episodes=episodes)
    keys = [results.add(seed=i, skill=s, protocol=protocol) for i, s in enumerate(skills)]
    [row] = leaderboard(results.store, "study")
    predicted = [results.predicted[key] for key in keys]
    table = np.array([(p.predictions == p.targets).mean(axis=1) for p in predicted])  # (S, E)
    assert row["score"] == pytest.approx(table.mean(), abs=1e-12)
    error = scipy.stats.sem(table.mean(axis=0))
    if error > 0:
        interval = scipy.stats.t.interval(0.95, episodes - 1, scale=error)
        assert row["ci95"] == pytest.approx(interval[1], abs=1e-12)
    if len(skills) < 3:
        assert row["seed_std"] is None
        assert row["rank"] is None
    else:
        assert row["seed_std"] == pytest.approx(table.mean(axis=1).std(ddof=1), abs=1e-12)
        assert row["rank"] == 1


def test_pandas_reads_every_digest_as_text(results: Any) -> None:
    results.row(content="12e45678" + "0" * 24)
    path, _ = write_leaderboard(results.store, "study")
    frame = pd.read_csv(path)
    assert frame["dataset_digest"][0] == "d-12e45678"
    digests = [name for name in COLUMNS if name.endswith(("_digest", "_version"))]
    assert all(isinstance(frame[name][0], str) for name in digests)


# Ranks.


def test_rows_are_by_inference_mode_then_by_score(results: Any) -> None:
    results.row("maml", skill=0.5)
    results.row("protonet", skill=0.9)
    results.row("batch", skill=0.7, inference="transductive")
    results.row("copy", skill=0.9, hp={"x": 1})
    rows = leaderboard(results.store, "study")
    assert [row["inference"] for row in rows] == ["inductive"] * 3 + ["transductive"]
    assert (rows[0]["rank"], rows[3]["rank"]) == (1, 1)
    scores = [float(str(row["score"])) for row in rows[:3]]
    assert scores == sorted(scores, reverse=True)


def test_scores_that_print_alike_share_a_rank(results: Any) -> None:
    for name in ("b", "a"):
        results.row(name, skill=1.0)
    results.row("worse", skill=0.4)
    rows = leaderboard(results.store, "study")
    assert [(row["algorithm"], row["rank"]) for row in rows] == [("a", 1), ("b", 1), ("worse", 3)]


def test_under_three_seeds_nobody_is_ranked_and_the_page_says_so(results: Any) -> None:
    results.row("maml", seeds=2)
    results.row("protonet", seeds=1)
    rows = by_algorithm(results)
    assert [(r["seeds"], r["seed_std"], r["rank"]) for r in rows.values()] == [
        (rows["maml"]["seeds"] if name == "maml" else 1, None, None) for name in rows
    ]
    page = files(results)[1]
    assert "1 or 2 seeds: these checkpoints only, nobody is ranked." in page
    assert "rank |" not in page
    results.row("reptile", seeds=3)
    page = files(results)[1]
    assert "Rows of 1 or 2 seeds speak of these checkpoints only" in page
    assert by_algorithm(results)["reptile"]["rank"] == 1


def test_a_row_is_transductive_if_one_of_its_cells_was_found_to_be(results: Any) -> None:
    results.row("maml", seeds=2)
    results.add("maml", 2, inference="transductive")
    results.row("protonet", skill=0.3)
    rows = by_algorithm(results)
    assert rows["maml"]["inference"] == "transductive"
    assert rows["maml"]["rank"] == rows["protonet"]["rank"] == 1


# What is missing.


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (("ok", "ok", "missing"), "missing"),
        (("ok", "nan", "missing"), "nan"),
        (("timeout", "killed", "ok"), "timeout"),
        (("out-of-memory", "error", "ok"), "error"),
        (("missing", "missing", "missing"), "missing"),
    ],
)
def test_a_missing_cell_is_never_averaged_over(
    results: Any, statuses: tuple[str, ...], told: str
) -> None:
    for seed, status in enumerate(statuses):
        results.add("maml", seed, status=status, skill=0.95)
    results.row("protonet", skill=0.4)
    rows = leaderboard(results.store, "study")
    assert [row["algorithm"] for row in rows] == ["protonet", "maml"]
    good, bad = rows
    assert (good["rank"], good["status"]) == (1, "ok")
    assert (bad["status"], bad["seeds"]) == (told, statuses.count("ok"))
    numbers = ("score", "ci95", "seed_std", "rank", *TIMES, "train_items", "budget")
    assert all(bad[name] is None for name in numbers)
    wrong = 3 - statuses.count("ok")
    assert f"{told} ({wrong} of 3)" in files(results)[1]


def test_a_corrupted_cell_is_missing(results: Any, caplog: pytest.LogCaptureFixture) -> None:
    keys = results.row()
    path = results.store.folder(keys[1]) / "episodes.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    [row] = leaderboard(results.store, "study")
    assert (row["status"], row["seeds"], row["score"]) == ("missing", 2, None)
    assert keys[1] in caplog.text


def test_failed_rows_stand_last_and_a_missing_row_has_no_digest_of_data(results: Any) -> None:
    results.row("aaa", status="missing")
    results.row("bbb", status="error")
    results.row("ccc", inference="transductive")
    rows = leaderboard(results.store, "study")
    assert [row["algorithm"] for row in rows] == ["ccc", "aaa", "bbb"]
    assert [row["dataset_digest"] for row in rows] == ["d-dddddddd", None, "d-dddddddd"]
    assert files(results)[1].count("no result") == 1


# Nothing is mixed.


def test_rows_on_other_data_stand_apart_and_are_ranked_apart(
    results: Any, caplog: pytest.LogCaptureFixture
) -> None:
    results.row("maml", skill=0.9)
    results.row("protonet", skill=0.5, content="f" * 32)
    rows = leaderboard(results.store, "study")
    assert {row["algorithm"]: row["rank"] for row in rows} == {"maml": 1, "protonet": 1}
    page = files(results)[1]
    assert page.count("## quickdraw, 5w1s3q, inductive") == 2
    assert "data d-dddddddd" in page
    assert "data d-ffffffff" in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"content": "f" * 32}, "dataset.digest"),
        ({"code": "f" * 32}, "algorithm.code"),
        ({"recipe": Recipe(steps=9)}, "recipe.steps: 800 -> 9"),
        ({"hp": {"inner_lr": 0.1}}, "algorithm.hp.inner_lr"),
        ({"device": "cuda"}, "numerics.device: 'cpu' -> 'cuda'"),
    ],
)
def test_cells_of_two_kinds_are_never_averaged_into_one_row(
    results: Any, caplog: pytest.LogCaptureFixture, change: dict[str, Any], told: str
) -> None:
    results.add("maml", 0, skill=0.9)
    results.add("maml", 1, skill=0.9)
    results.add("maml", 2, skill=0.2, **change)
    results.add("maml", 3, status="missing")
    with caplog.at_level(logging.WARNING):
        rows = leaderboard(results.store, "study")
    assert [row["seeds"] for row in rows if row["status"] == "ok"] in ([2, 1], [1, 2])
    assert [row["seeds"] for row in rows if row["status"] == "missing"] == [0]
    assert all(row["rank"] is None for row in rows)
    assert told in caplog.text.replace("9 -> 800", "800 -> 9").replace(
        "'cuda' -> 'cpu'", "'cpu' -> 'cuda'"
    )


def test_rows_that_met_other_episodes_are_not_ranked_together(
    results: Any, caplog: pytest.LogCaptureFixture
) -> None:
    results.row("maml", skill=0.9)
    results.row("protonet", skill=0.5, episode_shift=1)
    assert [row["rank"] for row in leaderboard(results.store, "study")] == [1, 1]
    assert "different episodes" in caplog.text


def test_seeds_of_a_row_that_met_other_episodes_are_refused(results: Any) -> None:
    results.add("maml", 0)
    results.add("maml", 1, episode_shift=1)
    with pytest.raises(StoreError, match="different episodes"):
        leaderboard(results.store, "study")


def test_a_cell_of_another_protocol_than_its_suite_says_is_refused(results: Any) -> None:
    easier = Protocol(ways=2, shots=1, queries=3, episodes=8)
    results.add("maml", protocol=easier, label_protocol=Protocol(ways=5, shots=1))
    with pytest.raises(StoreError, match="another protocol"):
        leaderboard(results.store, "study")


def test_another_suite_in_the_folder_changes_nothing(results: Any) -> None:
    results.row("maml")
    before = files(results)
    results.row("protonet", suite="other")
    assert files(results) == before


# Times.


def test_training_time_is_the_mean_over_seeds_with_shared_phases(results: Any) -> None:
    for seed, (own, shared) in enumerate([(1.0, 10.0), (2.0, 20.0), (6.0, 30.0)]):
        phase = results.phase(seed, train_s=shared)
        results.add("baseline", seed, train_s=own, phases=[phase])
    results.row("unknown", train_s=None)
    rows = by_algorithm(results)
    assert rows["baseline"]["train_s"] == pytest.approx(23.0)
    assert rows["unknown"]["train_s"] is None


def test_times_are_medians_of_one_machine(results: Any) -> None:
    keys = results.row("maml")
    for key, adapt in zip(keys, (30.0, 1.0, 2.0), strict=True):
        results.time(key, adapt, 2 * adapt)
    results.time(keys[0], 500.0, 500.0, machine="m-00000000")
    [row] = leaderboard(results.store, "study")
    assert (row["adapt_ms"], row["predict_ms"]) == (2.0, 4.0)
    [there] = leaderboard(results.store, "study", machine="m-00000000")
    assert (there["adapt_ms"], there["predict_ms"]) == (500.0, 500.0)
    [nowhere] = leaderboard(results.store, "study", machine="m-11111111")
    assert nowhere["adapt_ms"] is None


# Order, files, text.


def test_an_unknown_suite_is_an_error_with_the_nearest_name(results: Any) -> None:
    with pytest.raises(UnknownNameError) as nothing:
        leaderboard(results.store, "study")
    assert nothing.value.hint == "run it first"
    results.row()
    with pytest.raises(UnknownNameError, match="no results of suite 'studi'") as near:
        write_leaderboard(results.store, "studi")
    assert near.value.hint == "did you mean 'study'?"
    with pytest.raises(UnknownNameError) as far:
        leaderboard(results.store, "")
    assert far.value.hint == "there are results of: study"


def test_labels_that_are_not_ours_are_named_and_left_out(
    results: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from metabench.store.suites import SuiteCell

    results.row()
    strange = SuiteCell(key="0" * 32, labels={"id": "x", "seed": "zero"})
    results.store.remember_suite("study", [strange])
    assert len(leaderboard(results.store, "study")) == 1
    assert "cell 00000000000000000000000000000000 of suite study is left out" in caplog.text


def test_a_lost_run_json_costs_times_and_command_only(results: Any) -> None:
    keys = results.row()
    for key in keys:
        (results.store.folder(key) / "run.json").unlink()
    assert results.store.run_info(keys[0]) == RunInfo()
    [row] = table_rows(StoreSource(results.store), "study")
    assert (row.status, row.train_s) == ("ok", None)
    assert "metabench of unknown version" in files(results)[1]


def test_a_table_costs_no_torch(results: Any) -> None:
    results.row()
    code = (
        "import sys; from metabench.store.store import Store;"
        "from metabench.leaderboard.table import write_leaderboard;"
        f"write_leaderboard(Store.open({str(results.store.root)!r}, create=False), 'study');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
