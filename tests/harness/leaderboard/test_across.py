"""Many data sets: a section of mean ranks, for what can be compared there, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_up_tables import files

from metabench.cli import main
from metabench.episodes.protocol import Protocol
from metabench.leaderboard.across import across, across_sections, letters
from metabench.leaderboard.rows import TableRow, table_rows
from metabench.leaderboard.source import StoreSource

SKILLS = {"good": 0.95, "middling": 0.6, "poor": 0.25}


def fill(results: Any, datasets: int, **options: Any) -> None:
    for number in range(datasets):
        for name, skill in SKILLS.items():
            results.add(name, dataset=f"d{number}", content=f"{number:032}", skill=skill, **options)


def rows_of(results: Any) -> list[TableRow]:
    return table_rows(StoreSource(results.store), "study")


def test_methods_are_ranked_over_six_data_sets(results: Any) -> None:
    fill(results, 8, protocol=Protocol(ways=5, shots=1, queries=15, episodes=20))
    overall = across(rows_of(results), "inductive")
    assert overall is not None
    found = overall.found
    assert found.algorithms == tuple(f"{name}@conv4-32" for name in SKILLS)
    assert found.mean_ranks == (1.0, 2.0, 3.0)
    assert found.friedman_p is not None
    assert found.friedman_p < 0.001
    assert found.groups == ((0,), (1,), (2,))
    [section] = across_sections(rows_of(results))
    assert [row["tied"] for row in section.rows] == ["a", "b", "c"]
    page = files(results)[1]
    assert "## all 8 data sets, inductive" in page
    assert across(rows_of(results), "transductive") is None


def test_fewer_data_sets_and_two_protocols_or_labels_of_one_are_no_more(results: Any) -> None:
    fill(results, 5)
    fill(results, 5, protocol=Protocol(ways=5, shots=5, queries=3, episodes=8))
    assert across(rows_of(results), "inductive") is None
    for name, skill in SKILLS.items():  # the sixth label is of the first one's content
        results.add(name, dataset="another", content=f"{0:032}", skill=skill)
    assert across(rows_of(results), "inductive") is None
    assert "data sets" not in files(results)[1].partition("##")[2].partition("rank:")[0]


def test_who_lacks_a_score_somewhere_is_left_out(results: Any) -> None:
    fill(results, 6)
    results.add("late", dataset="d0", content=f"{0:032}", skill=1.0)
    results.add("broken", dataset="d0", content=f"{0:032}", status="nan")
    found = across(rows_of(results), "inductive")
    assert found is not None
    assert set(found.found.algorithms) == {f"{name}@conv4-32" for name in SKILLS}
    # With six data sets and three pairs the smallest p is .09.
    [section] = across_sections(rows_of(results))
    assert "With so few data sets no pair can be." in section.note
    assert "Left out, with a score missing or two in one place: late@conv4-32." in section.note


def test_what_few_have_tried_takes_nothing_from_the_others(results: Any) -> None:
    """One more protocol of one method, and one more data set, don't count."""
    fill(results, 6)
    before = across(rows_of(results), "inductive")
    assert before is not None
    more = Protocol(ways=5, shots=5, queries=3, episodes=8)
    for number in range(6):
        results.add("good", dataset=f"d{number}", content=f"{number:032}", protocol=more, skill=0.1)
    results.add("poor", dataset="d6", content=f"{6:032}", skill=0.9)
    assert across(rows_of(results), "inductive") == before
    assert before.left_out == ()
    assert len(before.protocols) == 1


def test_a_method_of_two_versions_is_left_out(results: Any) -> None:
    """Which of two rows of one name it is, nobody can tell."""
    fill(results, 6)
    results.add("good", dataset="d0", content=f"{0:032}", skill=0.2, seed=1, code="c" * 32)
    found = across(rows_of(results), "inductive")
    assert found is not None
    assert found.left_out == ("good@conv4-32",)


def test_where_friedmans_test_sees_nothing_nobody_is_told_apart(results: Any) -> None:
    for number in range(6):
        for place, name in enumerate("abc"):
            skill = 0.9 if (number + place) % 3 else 0.3
            results.add(name, dataset=f"d{number}", content=f"{number:032}", skill=skill)
    [section] = across_sections(rows_of(results))
    assert section.note.endswith("So nobody is told apart.")
    assert {row["tied"] for row in section.rows} == {"a"}


def test_there_are_letters_for_any_number_of_groups() -> None:
    named = [letters(number) for number in range(800)]
    assert named[:3] == ["a", "b", "c"]
    assert named[25:28] == ["z", "aa", "ab"]
    assert len(set(named)) == 800


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_diagram_is_drawn_into_a_file(results: Any, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("scikit_posthocs")
    fill(results, 6)
    out, place = tmp_path / f"ranks.{kind}", str(results.store.root)
    asked = ["leaderboard", "-s", "study", "--out", place, "--diagram", str(out)]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert out.read_bytes()[:4] == {"svg": b"<?xm", "png": b"\x89PNG"}[kind]
    wrong = CliRunner().invoke(main, [*asked[:-1], str(tmp_path / "ranks.gif")])
    assert wrong.exit_code == 2


def test_without_six_data_sets_there_is_nothing_to_draw(results: Any, tmp_path: Path) -> None:
    fill(results, 2)
    place = str(results.store.root)
    asked = ["leaderboard", "-s", "study", "--out", place, "--diagram", str(tmp_path / "a.svg")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 2
    assert "6 data sets" in done.output
