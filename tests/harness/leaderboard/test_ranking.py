"""What a table says of its ranks."""

from __future__ import annotations

from typing import Any

from made_up_tables import by_algorithm, files

from metabench.episodes.protocol import Protocol

PROTOCOL = Protocol(ways=5, shots=1, queries=15, episodes=60)


def test_rows_that_cannot_be_told_apart_share_a_rank(results: Any) -> None:
    results.row("good", skill=0.9, protocol=PROTOCOL)
    for name in ("a", "b"):
        results.row(name, skill=0.5, protocol=PROTOCOL)
    results.row("poor", skill=0.2, protocol=PROTOCOL)
    rows = by_algorithm(results)
    assert {name: row["rank"] for name, row in rows.items()} == {
        "good": 1,
        "a": 2,
        "b": 2,
        "poor": 4,
    }
    assert rows["a"]["score"] != rows["b"]["score"]
    page = files(results)[1]
    assert "Ranked in pairs (Holm): 6 with the spread of seeds pooled over the table." in page


def test_pairs_without_common_seeds_are_said(results: Any) -> None:
    results.row("a", skill=0.9, protocol=PROTOCOL)
    for seed in (10, 11, 12):
        results.add("b", seed, skill=0.2, protocol=PROTOCOL)
    assert {row["rank"] for row in by_algorithm(results).values()} == {1}
    page = files(results)[1]
    assert "Ranked in pairs (Holm): 1 not told apart, with fewer than 3 seeds in common." in page
    assert "ranks need not follow scores" in page


def test_inductive_and_transductive_rows_are_ranked_apart(results: Any) -> None:
    results.row("a", skill=0.5, protocol=PROTOCOL)
    results.row("b", skill=0.9, protocol=PROTOCOL, inference="transductive")
    assert {row["rank"] for row in by_algorithm(results).values()} == {1}
