"""Looking costs no PyTorch: what is imported by the package, by --help and by list."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "torchvision", "pandas", "scipy", "pyarrow", "sklearn", "matplotlib")

RUN = """
import sys
from metabench.cli import main
try:
    main({args!r}, prog_name="metabench")
except SystemExit as leave:
    assert leave.code == 0, leave.code
print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


def imported_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = [x for x in done.stderr.splitlines() if x.startswith("imported:")]
    return set(line.split()[1:])


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--help"],
        ["list", "algorithms", "--json"],
        ["list", "suites", "--format", "markdown"],
        ["--strict-plugins", "list", "plugins"],
        ["completion", "fish"],
    ],
    ids=" ".join,
)
def test_looking_imports_nothing_heavy(args: list[str]) -> None:
    imported = imported_by(RUN.format(args=args))
    assert "metabench" in imported
    assert imported.isdisjoint(HEAVY)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, metabench; dir(metabench); metabench.__version__; metabench.Lazy\n"
        "print('imported:', *sorted({n.partition('.')[0] for n in sys.modules}), file=sys.stderr)"
    )
    assert imported_by(code).isdisjoint({*HEAVY, "numpy", "pydantic", "click", "rich"})


def test_the_test_can_see_a_heavy_import() -> None:
    code = (
        "import sys, metabench; metabench.Algorithm\n"
        "print('imported:', *sorted({n.partition('.')[0] for n in sys.modules}), file=sys.stderr)"
    )
    assert "torch" in imported_by(code)


@pytest.mark.slow
@pytest.mark.parametrize("args", [["--help"], ["list"]], ids=" ".join)
def test_looking_costs_a_quarter_of_importing_torch_at_most(args: list[str]) -> None:
    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    # The best of a few: what else the machine does can only slow a run down.
    looking = min(seconds("-m", "metabench", *args) for _ in range(5))
    torch = min(seconds("-c", "import torch") for _ in range(3))
    assert looking <= torch / 4
