"""The numbers of tables, recomputed from predictions and compared in the JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from metabench.errors import EvidenceError
from metabench.leaderboard.rows import COLUMNS, TableRow
from metabench.leaderboard.table import leaderboard_csv, leaderboard_markdown
from metabench.publishing.files import Files
from metabench.publishing.published import (
    PublishedRow,
    PublishedSource,
    PublishedTable,
    published,
    stem_of,
)
from metabench.publishing.verify.reading import Read, RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require

RELATIVE = 1e-9
"""By how much a number may differ that another machine computed from the same predictions."""
TEXTS = (".csv", ".md", ".datasheet.md", ".croissant.json")
"""Beside a table `<suite>.json` in a folder."""
_DECIMAL = re.compile(r"-?\d+\.\d+")


def check_numbers(read: Read, report: Report) -> None:
    """Findings on every number of every table."""
    whole = PublishedSource(read.files, read.tables.values(), read.proofs)
    for suite, table in read.tables.items():
        of_table = [row for row in read.rows() if row.suite == suite]
        if not all(row.whole for row in of_table):
            report.check("numbers", suite, _missing)
            continue
        rows: list[TableRow] = []
        if not report.check("rows", suite, partial(_recompute, read, whole, suite, rows)):
            continue
        again = published(suite, rows, whole)
        report.check("rows", suite, partial(_same_rows, table, again))
        by_cells = {tuple(sorted(row.cells.items())): row for row in again.rows}
        for row in of_table:
            report.check("numbers", row.what, partial(_same_numbers, row, by_cells))
        if not read.is_bundle:
            report.check("files", suite, partial(_all_there, read.files, suite))
            _check_texts(read.files, whole, suite, rows, report)


def _all_there(files: Files, suite: str) -> None:
    """A published table has all its texts."""
    needed = {stem_of(suite) + ending for ending in TEXTS}
    left = sorted(needed - set(files.names()))
    require(not left, f"it has no {', '.join(left)}: publish it again")


def _missing() -> None:
    raise CannotCheckError("not all of its evidence could be read")


def _recompute(read: Read, source: PublishedSource, suite: str, rows: list[TableRow]) -> None:
    """Add the rows of the table as its evidence makes them."""
    found = source.rows(suite)
    if read.is_bundle:
        found = [replace(row, trust="self-reported") for row in found]
    rows += found


def _same_rows(table: PublishedTable, again: PublishedTable) -> None:
    """The same rows in the same order."""
    told, made = ([(row.labels, row.cells) for row in t.rows] for t in (table, again))
    require(len(told) == len(made), f"it has {len(told)} rows, its evidence makes {len(made)}")
    require(told == made, "its rows are not in the order of their numbers, or of other cells")


def _same_numbers(row: RowOf, again: Mapping[tuple[tuple[str, str], ...], PublishedRow]) -> None:
    told, made = row.row.numbers, again.get(tuple(sorted(row.row.cells.items())))
    if made is None:
        raise EvidenceError("its cells are not one row")
    require(set(told) == set(COLUMNS), "its columns are not those of a table")
    for column in COLUMNS:
        one, other = told[column], made.numbers[column]
        if _are_numbers(one, other):
            assert isinstance(one, int | float)
            assert isinstance(other, int | float)
            same = math.isclose(one, other, rel_tol=RELATIVE, abs_tol=1e-12)
        else:
            same = one == other and type(one) is type(other)
        require(same, f"its {column} is {one}, and its evidence gives {other}")


def _are_numbers(*values: object) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _check_texts(
    files: Files, source: PublishedSource, suite: str, rows: Sequence[TableRow], report: Report
) -> None:
    """The CSV and the Markdown beside a table, where they are there."""
    stem, there = stem_of(suite), set(files.names())
    exact = [v for row in rows for v in row.to_dict().values() if isinstance(v, float)]
    if f"{stem}.csv" in there:
        made = partial(leaderboard_csv, rows)
        report.check("texts", f"{stem}.csv", partial(_same_csv, files, f"{stem}.csv", made, exact))
    if f"{stem}.md" in there:
        made = partial(leaderboard_markdown, source, suite, rows)
        report.check("texts", f"{stem}.md", partial(_same_text, files, f"{stem}.md", made, exact))


def _same_csv(files: Files, name: str, make: Callable[[], str], exact: Sequence[float]) -> None:
    """Cell by cell, so that what differs can be named."""
    told, made = files.read(name).decode(), make()
    one, other = (list(csv.reader(io.StringIO(text))) for text in (told, made))
    require(len(one) == len(other), f"it has {len(one)} lines, its evidence makes {len(other)}")
    for line, (mine, theirs) in enumerate(zip(one, other, strict=True), 1):
        require(len(mine) == len(theirs), f"its line {line} has {len(mine)} cells")
        for column, a, b in zip(other[0], mine, theirs, strict=True):
            same = _same_rounded(a, b, exact)
            require(same, f"line {line}, {column} is {a!r}, and should be {b!r}")
    # What is left: quotes, line ends, all that is no cell.
    _same_text(files, name, lambda: made, exact)


def _same_text(files: Files, name: str, make: Callable[[], str], exact: Sequence[float]) -> None:
    told, made = files.read(name).decode(), make()
    one, other = _without_numbers(told), _without_numbers(made)
    lines = zip(one.split("\n"), other.split("\n"), strict=False)
    odd = next((number for number, (a, b) in enumerate(lines, 1) if a != b), None)
    require(odd is None, f"its line {odd} is not what its evidence makes")
    require(one == other, "it is longer or shorter than what its evidence makes")
    for a, b in zip(_DECIMAL.findall(told), _DECIMAL.findall(made), strict=True):
        require(_same_rounded(a, b, exact), f"it says {a} where its evidence gives {b}")


def _without_numbers(text: str) -> str:
    """Decimal numbers as so many signs, so that the rest can be compared."""
    return _DECIMAL.sub(lambda match: "#" * len(match.group()), text)


def _same_rounded(told: str, made: str, exact: Sequence[float]) -> bool:
    """Equal, or the two roundings of a number that lies half way between them."""
    if told == made:
        return True
    if not (_DECIMAL.fullmatch(told) and _DECIMAL.fullmatch(made)):
        return False
    places = len(made.partition(".")[2])
    apart = round(abs(float(told) - float(made)) * 10**places)
    half_way = (float(told) + float(made)) / 2
    near = any(math.isclose(number, half_way, rel_tol=RELATIVE, abs_tol=1e-12) for number in exact)
    return len(told.partition(".")[2]) == places and apart == 1 and near
