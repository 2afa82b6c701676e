"""Rows as text: untrusted cells stay in their cell, numbers look the same everywhere."""

import csv
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from metabench.rendering import cell, csv_cell, plain, render

ROWS = [
    {"name": "maml", "score": 0.50312, "ways": 5, "ok": True, "rank": None},
    {"name": "-5 is text", "score": float("nan"), "ways": 20, "ok": False, "rank": 1},
]
COLUMNS = ("name", "score", "ways", "ok", "rank")


def test_the_formats_of_one_table() -> None:
    assert render(ROWS, COLUMNS, "csv") == (
        "name,score,ways,ok,rank\nmaml,0.5031,5,true,\n'-5 is text,,20,false,1\n"
    )
    assert render(ROWS, COLUMNS, "table") == (
        "name          score    ways  ok       rank\n"
        "----------  -------  ------  -----  ------\n"
        "maml         0.5031       5  true\n"
        "-5 is text               20  false       1\n"
    )
    header, rule, first, _ = render(ROWS, COLUMNS, "markdown").splitlines()
    assert [part.strip() for part in header.split("|")[1:-1]] == list(COLUMNS)
    assert rule.split("|")[2].endswith("-:")
    assert first.split("|")[2].strip() == "0.5031"
    assert json.loads(render(ROWS, COLUMNS, "json"))[1] == {**ROWS[1], "score": None}


def test_no_rows_leave_the_header() -> None:
    assert render([], ("a", "b"), "csv") == "a,b\n"
    assert render([], ("a", "b"), "json") == "[]\n"
    assert render([], ("a", "b"), "table").split()[:2] == ["a", "b"]
    assert render([], ("a", "b"), "markdown").startswith("| a")


def test_negative_numbers_are_no_formulas() -> None:
    assert csv_cell(-0.25) == "-0.2500"
    assert csv_cell("-0.2500") == "-0.2500"
    assert csv_cell("-1+cmd") == "'-1+cmd"
    assert csv_cell("=1") == "'=1"


def test_escape_sequences_go_whole() -> None:
    assert plain("a\x1b[31;1mb\x1b[0m c\x1b]0;title\x07d\x9b2Je\x1bMf") == "ab cdef"
    assert plain("one\r\n two\tthree\u2028four") == "one two three four"
    assert plain("\u202eevil\u200b") == "evil"
    assert plain("ünïcode 数字") == "ünïcode 数字"


@given(st.text())
def test_a_cell_is_one_printable_line(text: str) -> None:
    shown = cell(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert plain(shown) == shown
    shown.encode("utf-8")


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_foreign_text_never_makes_cells_or_rows(pairs: list[tuple[str, str]]) -> None:
    rows = [{"a": a, "b": b} for a, b in pairs]
    parsed = list(csv.reader(io.StringIO(render(rows, ("a", "b"), "csv"))))
    assert [len(row) for row in parsed if row] == [2] * (len(rows) + 1)
    assert not any(c.startswith(("=", "@")) for row in parsed for c in row)
    lines = render(rows, ("a", "b"), "markdown").splitlines()
    assert len(lines) == 2 + len(rows)
    for line in lines:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
