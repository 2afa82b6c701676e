"""The training curve as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from metabench.engine.descent import Row

COLUMNS = ("phase", "step", "loss", "lr", "validation")


def curve_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV, floats exact, what is missing empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if row[k] is None else row[k] for k in COLUMNS} for row in rows)
    return text.getvalue().encode()
