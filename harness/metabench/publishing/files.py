"""Reading what others wrote: names and bytes from a folder, bounded, and nothing outside of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from metabench.errors import EvidenceError

MOST_BYTES = 64 * 2**20
"""Of one file."""
MOST_JSON = 16 * 2**20
"""Bytes of one JSON file: what is made of it in memory takes some tens of times as much."""
MOST_FILES = 100_000
MOST_DEPTH = 32
"""Of tables and lists within each other; what walks through them does so by recursion."""
_NAME = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9 ._%+~-]*")


class Files(Protocol):
    """Files by name, such as `evidence/cells/<key>.json`."""

    @property
    def place(self) -> str:
        """What people call it."""

    def names(self) -> list[str]:
        """All names, sorted."""

    def read(self, name: str) -> bytes:
        """The content of a file; EvidenceError where it isn't there, or too large."""


class FolderFiles:
    """The files of a folder; links are refused, wherever they lead."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        found = []
        for path in self.root.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            if path.is_symlink():
                raise EvidenceError(f"{name} is a link", "put the file itself there")
            if path.is_file():
                found.append(name)
            if len(found) > MOST_FILES:
                raise EvidenceError(f"{self.place} has more than {MOST_FILES} files")
        return sorted(found)

    def read(self, name: str) -> bytes:
        path = self.root.joinpath(*parts_of(name))
        try:
            if any(p.is_symlink() for p in (path, *path.parents) if self.root in p.parents):
                raise EvidenceError(f"{name} is a link", "put the file itself there")
            if not path.is_file():
                raise EvidenceError(f"{name} is missing")
            if path.stat().st_size > MOST_BYTES:
                raise EvidenceError(f"{name} is larger than {MOST_BYTES} bytes")
            return path.read_bytes()
        except OSError as error:
            raise EvidenceError(f"{name} can't be read: {error.strerror or error}") from error


class GivenFiles:
    """Files that are in memory."""

    def __init__(self, content: Mapping[str, bytes], place: str) -> None:
        self.content = dict(content)
        self._place = place

    @property
    def place(self) -> str:
        return self._place

    def names(self) -> list[str]:
        return sorted(self.content)

    def read(self, name: str) -> bytes:
        parts_of(name)
        if name not in self.content:
            raise EvidenceError(f"{name} is missing")
        return self.content[name]


def parts_of(name: str) -> list[str]:
    """The parts of a file's name; EvidenceError for what could lead elsewhere."""
    parts = name.split("/")
    if not all(_NAME.fullmatch(part) and not part.endswith((" ", ".")) for part in parts):
        raise EvidenceError(f"{name!r} is no name of a file in here")
    return parts


def read_json(files: Files, name: str) -> Any:
    """The JSON of a file.

    Raises:
        EvidenceError: it's none, names something twice, holds a number that JSON has not, a text
            that UTF-8 has not, or more tables within tables than anybody needs.
    """
    data = files.read(name)
    if len(data) > MOST_JSON:
        raise EvidenceError(f"{name} is larger than {MOST_JSON} bytes")
    try:
        value = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_once_each,
        )
        _check_shallow(value)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{name} is no JSON that is taken: {error}") from error
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("it names a key of a table twice")
    return table


def _check_shallow(value: Any) -> None:
    """Level by level, not by recursion; texts that UTF-8 can't hold are found on the way."""
    level = [value]
    for _ in range(MOST_DEPTH):
        for item in level:
            if isinstance(item, str):
                item.encode()
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
        if not inner:
            return
        level = inner
    raise ValueError(f"it nests deeper than {MOST_DEPTH}")


def first_problem(name: str, error: ValidationError) -> EvidenceError:
    """What a model says of the content of a file, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return EvidenceError(f"{name}: {where}: {first['msg']}")
