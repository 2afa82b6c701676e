"""Checks the tree: top-level entries, first lines, lengths of modules, unfilled placeholders."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOP_LEVEL = {
    "pyproject.toml",
    "harness",
    "plugins",
    "leaderboards",
    "tests",
    "ci",
    "CONTRIBUTING.md",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
}
LONGEST_MODULE = 400
PLACEHOLDER = re.compile(r"@[A-Z]+@")  # what a text leaves open until a number is known


def main() -> int:
    """Print what is wrong, a line each; 1 if anything is."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    wrong = [
        f"{name}: not one of the top-level entries"
        for name in sorted({path.parts[0] for path in files})
        if not name.startswith(".") and name not in TOP_LEVEL
    ]
    for path in filter(Path.is_file, files):
        content = path.read_bytes()
        if b"\0" in content:  # not a text
            continue
        lines = content.decode().splitlines()
        for number, line in enumerate(lines, start=1):
            if found := PLACEHOLDER.search(line):
                wrong.append(f"{path}:{number}: {found[0]} is not filled in")
        if path.suffix != ".py":
            continue
        if len(lines) > LONGEST_MODULE:
            wrong.append(f"{path}: {len(lines)} lines, over {LONGEST_MODULE}")
        if lines and path.parts[0] in {"harness", "plugins"} and not lines[0].startswith('"""'):
            wrong.append(f"{path}: its first line should say what it is about")
    print("\n".join(wrong) or f"tree: {len(files)} files, all in place")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
