"""Rows as text: table, JSON, CSV or Markdown, with everything in them treated as untrusted.

Names and summaries come from plugins, suites and other people's result folders, so whatever is
printed goes through `plain` (no terminal escapes) and through the escaping of its format. Numbers
are fractions with 4 decimals; what is missing is empty.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

Row = Mapping[str, object]
Format = Literal["table", "json", "csv", "markdown"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "markdown")

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS: titles, links
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_FORMULA = tuple("=+-@＝＋－＠\t\r")
_MARKDOWN = re.compile(r"[\\`*|~\[\]]|(?<!\w)_|_(?!\w)")


def plain(text: str) -> str:
    """One line of visible text: no terminal escapes, control or direction-changing characters."""
    visible = (
        " " if c.isspace() else c
        for c in _ESCAPE_SEQUENCE.sub("", text)
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
    return " ".join("".join(visible).split())


def cell(value: object) -> str:
    """A value as it stands in a table; a number that is not finite counts as missing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else ""
    return plain(str(value))


def csv_cell(value: object) -> str:
    """As `cell`; text that a spreadsheet would take for a formula gets an apostrophe."""
    text = cell(value)
    if isinstance(value, int | float) or not text.startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def markdown_cell(value: object) -> str:
    """As `cell`, with Markdown's and HTML's own characters escaped."""
    text = cell(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\g<0>", text)


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    r"""CSV with a header and `\n` line ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def to_markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table as GitHub reads it; columns of numbers stand right."""
    cells = [[markdown_cell(row.get(column)) for column in columns] for row in rows]
    return _tabulate(cells, rows, columns, "pipe")


def to_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Aligned columns, as wide as they need; columns of numbers stand right."""
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    return _tabulate(cells, rows, columns, "simple")


def to_json(value: object) -> str:
    """JSON in ASCII (so it can carry no terminal escape); numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def render(rows: Sequence[Row], columns: Sequence[str], fmt: Format) -> str:
    """Rows as text that ends with a line end; JSON is a list of objects with `columns` as keys."""
    if fmt == "json":
        return to_json([{column: row.get(column) for column in columns} for row in rows])
    return {"csv": to_csv, "markdown": to_markdown, "table": to_table}[fmt](rows, columns)


def numeric_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[bool]:
    """Which columns hold numbers, and nothing else but missing values."""
    present = {c: [row[c] for row in rows if row.get(c) is not None] for c in columns}
    return [
        bool(present[c])
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in present[c])
        for c in columns
    ]


def _tabulate(
    cells: list[list[str]], rows: Sequence[Row], columns: Sequence[str], style: str
) -> str:
    from tabulate import tabulate

    aligned = ["right" if numeric else "left" for numeric in numeric_columns(rows, columns)]
    text = tabulate(
        cells,
        headers=list(columns),
        tablefmt=style,
        disable_numparse=True,
        colalign=aligned if cells else None,
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
