"""Running the benchmark suite from anywhere: an installed wheel, without a checkout."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metabench.errors import UsageError
from metabench.plugins import registry
from metabench.testing.benchmarks.asked import Asked

HERE = Path(__file__).parent
COLUMNS = ("group", "benchmark", "median_ms", "iqr_ms", "first_call_ms", "rounds")
NEEDED = ("pytest", "pytest_benchmark")
FAILED, INTERRUPTED, USAGE = 1, 130, 2
_EXIT_CODES = {0: 0, 1: FAILED, 2: INTERRUPTED}
"""pytest's own, by what they mean here; anything else is a usage error."""

Rows = list[dict[str, Any]]


def run_benchmarks(asked: Asked, pytest_args: Sequence[str] = ()) -> int:
    """Run the suite; pytest prints its report on standard output.

    Args:
        asked: what of it.
        pytest_args: handed to pytest, such as `--benchmark-compare`.

    Returns:
        the exit code: 1 where a benchmark failed.

    Raises:
        UsageError: pytest-benchmark is not installed, or nothing registered has such a name.
    """
    _check_installed()
    asked.check(registry())
    import pytest

    from metabench.testing.benchmarks.hooks import Hooks

    args = ["-c", str(HERE / "pytest.ini"), str(HERE / "suite.py"), *pytest_args]
    code = int(pytest.main(args, plugins=[Hooks(asked)]))
    return _EXIT_CODES.get(code, USAGE)


def tabulated(asked: Asked, pytest_args: Sequence[str] = ()) -> tuple[int, Rows]:
    """Run the suite; what pytest prints goes to standard error.

    Returns:
        the exit code, and a row a benchmark with the columns of `COLUMNS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmarks.json"
        quiet = ["--benchmark-quiet", f"--benchmark-json={file}"]
        with contextlib.redirect_stdout(sys.stderr):
            code = run_benchmarks(asked, [*quiet, *pytest_args])
        found = json.loads(file.read_text())["benchmarks"] if file.exists() else []
    return code, [_row(benchmark) for benchmark in found]


def _row(benchmark: dict[str, Any]) -> dict[str, Any]:
    stats = benchmark["stats"]
    first = benchmark["extra_info"].get("first_call_s")
    return {
        "group": benchmark["group"],
        "benchmark": benchmark["name"].removeprefix("test_"),
        "median_ms": 1e3 * stats["median"],
        "iqr_ms": 1e3 * stats["iqr"],
        "first_call_ms": None if first is None else 1e3 * first,
        "rounds": stats["rounds"],
    }


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        what = " and ".join(name.replace("_", "-") for name in missing)
        raise UsageError(
            f"the benchmarks need {what}, not installed here",
            "pip install 'metabench[bench]'",
        )
