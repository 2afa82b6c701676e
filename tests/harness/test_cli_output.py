"""Tables on a terminal: what fits, what is folded, what is left out."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Callable

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.cli import main
from metabench.cli.app import VERBS
from metabench.cli.output import print_rows
from metabench.leaderboard.sections import READABLE
from metabench.rendering import Row

NAMES = ("relation-network", "batch-norm-batch", "conv4-32")
ROW: Row = {
    "rank": 12,
    **dict(zip(("algorithm", "variant", "backbone"), NAMES, strict=True)),
    **{"score": 0.5, "ci95": 0.01, "seed_std": 0.02, "seeds": 3, "adapt_ms": 12.1234},
    **{"predict_ms": 3.1234, "train_s": 1234.5678, "budget": 12000, "status": "missing (2 of 3)"},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, width: int, show: Callable[[], object]) -> list[str]:
    """The lines that a terminal of this width is sent."""
    out = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        show()
    visible = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return [line.rstrip() for line in visible.splitlines()]


@pytest.mark.parametrize(
    ("width", "status", "left"),
    [
        (80, False, "rank algorithm variant backbone score ci95 seed_std"),
        (80, True, "rank algorithm variant backbone score ci95 status"),
        (100, False, "rank algorithm variant backbone score ci95 seed_std seeds adapt_ms"),
        (100, True, "rank algorithm variant backbone score ci95 seed_std seeds status"),
        (200, True, " ".join(ROW)),
    ],
)
def test_the_names_of_a_leaderboard_stand_whole(
    monkeypatch: pytest.MonkeyPatch, width: int, status: bool, left: str
) -> None:
    columns = [c for c in READABLE if c in ROW and (status or c != "status")]
    rows = [ROW, {**ROW, "variant": "", "rank": None}]
    lines = shown(monkeypatch, width, lambda: print_rows(rows, columns))
    assert max(map(len, lines)) <= width
    assert lines[0].split() == left.split()
    assert lines[2].split()[:5] == ["12", *NAMES, "0.5000"]
    missing = len(columns) - len(left.split())
    told = f"{missing} columns left out: --format json has all"
    assert (lines[-1] == told) is (missing > 0)


def test_one_column_left_out_is_said_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "a" * 30, "plugin": "b" * 30, "size": "c" * 30}
    lines = shown(monkeypatch, 64, lambda: print_rows([row], list(row)))
    assert lines[0].split() == ["name", "size"]  # not the right-most: a plugin tells less
    assert lines[-1] == "1 column left out: --format json has all"


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "words", ["list algorithms", "list backbones", "list datasets", "list suites", "data list"]
)
def test_lists_are_readable_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, words: str
) -> None:
    monkeypatch.setenv("METABENCH_DATA", "/nowhere")  # one length of path on every machine
    what = "datasets" if words == "data list" else words.split()[1]
    from metabench.plugins import registry

    lines = shown(
        monkeypatch, width, lambda: main(words.split(), "metabench", standalone_mode=False)
    )
    assert max(map(len, lines)) <= width
    first = {line.split(" ")[0] for line in lines}
    entries = getattr(registry(), what).values()
    assert {entry.form for entry in entries} <= first  # every name whole, on one line
    assert len(lines) <= 3 + 4 * len(getattr(registry(), what))
    if words == "list algorithms" and width == 80:  # there is no room for what it does, too
        assert {"family", "inference", "reference"} <= set(lines[0].split())
    elif what != "datasets" or words == "list datasets":
        assert "summary" in lines[0]
    else:
        assert {"state", "licence", "origin"} <= set(lines[0].split())
        assert any("MIT, Brenden Lake" in line for line in lines)


TEXTS = st.text(st.sampled_from("ab -/é漢"), max_size=70)


@given(
    rows=st.lists(st.fixed_dictionaries(dict.fromkeys("wxyz", TEXTS)), max_size=3),
    width=st.integers(12, 120),
)
def test_no_line_is_wider_than_the_terminal_and_nothing_shown_is_lost(
    rows: list[Row], width: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines = shown(patch, width, lambda: print_rows(rows, list("wxyz")))
    from rich.cells import cell_len

    assert all(cell_len(line) <= width for line in lines)
    table = list(itertools.takewhile(lambda line: not re.match(r"\d columns?\b", line), lines))
    there = [c for c in "wxyz" if c in lines[0].split()]
    assert there[:1] == ["w"]
    for letter in "ab/é漢":
        written = sum(str(row[c]).count(letter) for row in rows for c in there)
        assert sum(line.count(letter) for line in table) == written


def commands(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        verb = command.get_command(context, name)
        assert verb is not None
        found += commands(verb, *path, name)
    return found


def test_no_help_prints_a_marker_of_its_layout() -> None:
    from click.testing import CliRunner

    paths = commands(main)
    assert {path[0] for path in paths if path} == set(VERBS)
    for path in paths:
        done = CliRunner().invoke(main, [*path, "-h"])
        assert done.exit_code == 0, done.output
        assert "\\b" not in done.stdout
        assert "\b" not in done.stdout
    told = CliRunner().invoke(main, ["completion", "-h"]).stdout.splitlines()
    assert any(line.endswith("in ~/.bashrc") and "bash: eval" in line for line in told)
