"""What the check of the tree accepts and refuses, in small trees of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "ci" / "check_tree.py"
PLACEHOLDER = "@" + "SCORE@"  # not in one piece: this file is checked too
GOOD = {
    "README.md": "write to me@example.org, or to @someone@\n",
    "harness/metabench/module.py": '"""A module."""\n',
    "tests/images.bin": f"\0{PLACEHOLDER}",
    ".ci/run": "make test\n",
}


def check(tree: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script on a tree of these files."""
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    return subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tree, capture_output=True, text=True, check=False
    )


def test_a_tree_in_order_is_accepted(tmp_path: Path) -> None:
    done = check(tmp_path, GOOD)
    assert (done.returncode, done.stdout) == (0, f"tree: {len(GOOD)} files, all in place\n")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("README.md", f"one\ngot {PLACEHOLDER}.\n", f"README.md:2: {PLACEHOLDER} is not filled in"),
        ("notes/a.md", "", "notes: not one of the top-level entries"),
        ("ci/long.py", "x = 1\n" * 401, "ci/long.py: 401 lines, over 400"),
        (
            "plugins/p.py",
            "import os\n",
            "plugins/p.py: its first line should say what it is about",
        ),
    ],
)
def test_what_is_out_of_order_is_named(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    done = check(tmp_path, GOOD | {name: text})
    assert (done.returncode, done.stdout) == (1, f"{complaint}\n")
