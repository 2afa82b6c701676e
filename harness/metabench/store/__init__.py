"""The store: one folder a cell, content-addressed, safe with many writers on a shared file system.

`store` is the way in. `keys` says what a cell is, `code` digests a plugin's code, `record` and
`results` are what is written, `shelf` publishes and verifies folders, `partial` keeps training
state to resume from, `suites` what a suite refers to, `leftovers` what nothing refers to.
Nothing here imports PyTorch but the functions of `tensors`, when they are called.
"""

from __future__ import annotations

import os
from pathlib import Path

from metabench.errors import UsageError

OUT_VARIABLE = "METABENCH_OUT"
"""The environment variable that names the result folder."""
DEFAULT_OUT = "metabench-results"
"""The result folder where nobody names one, in the current folder."""


def result_folder(option: str | Path | None = None) -> Path:
    """The result folder: `option` (`-o`), else METABENCH_OUT, else ./metabench-results.

    It need not exist yet.

    Raises:
        UsageError: `option` is empty, as a variable of the shell is that was never set.
    """
    if option == "":
        raise UsageError("the result folder has no name", "name one, or leave -o/--out away")
    chosen = option or os.environ.get(OUT_VARIABLE) or DEFAULT_OUT
    return Path(chosen).expanduser().absolute()
