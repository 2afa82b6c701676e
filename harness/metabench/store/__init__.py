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
        UsageError: `option` is empty, as a variable of the shell is that was never set; or `~`
            stands in it for somebody who has no home here.
    """
    if option == "":
        raise UsageError("the result folder has no name", "name one, or leave -o/--out away")
    chosen = option or os.environ.get(OUT_VARIABLE) or DEFAULT_OUT
    return with_home(chosen).absolute()


def with_home(path: str | Path) -> Path:
    """The path with `~` or `~NAME` at its begin as the home folder, as a shell has it.

    Raises:
        UsageError: nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}", "write the folder out") from None
