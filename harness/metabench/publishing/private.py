"""What is nobody's business: paths, users and hosts, looked for in all that would be handed in."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metabench.errors import EvidenceError

_ABSOLUTE = re.compile(
    r"(?<![\w.:/%~)\]-])/(?=[\w.~-])"  # /home/..., --set x=/home/..., but not a/b or https://
    r"|(?<![A-Za-z])[A-Za-z]:[\\/](?!/)"  # C:\, D:/
    r"|\\\\[\w.]"  # \\host\share
    r"|(?<![\w/.])~[\w.-]*[\\/]"  # ~/, ~name/
    r"|\bfile:"
)
_PARTS = re.compile(r"[\\/@]")


def check_nothing_private(value: Any, name: str) -> None:
    """Look through the texts of a JSON value, keys included.

    Args:
        name: of the file that it will stand in.

    Raises:
        EvidenceError: names the field that holds a path, or this user's or machine's name as a part
            of one.
    """
    home, names = _home(), _names()
    for where, text in _texts(value):
        field = f"{name}: {where}"
        if _ABSOLUTE.search(text):
            raise _private(field, "a path of this machine")
        if home and home in text:
            raise _private(field, "the home folder")
        parts = [part.casefold() for part in _PARTS.split(text)]
        if len(parts) > 1 and names.intersection(parts):
            raise _private(field, "the name of this user or machine")


def _private(field: str, what: str) -> EvidenceError:
    return EvidenceError(
        f"{field} holds {what}, which is not handed in",
        "name files by their content or by a name, not by where they lie, and run it again",
    )


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where or "it", value
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{where}.{key}" if where else str(key)
            yield inner, str(key)
            yield from _texts(item, inner)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _texts(item, f"{where}[{number}]")


def _home() -> str:
    try:
        home = str(Path.home())
    except RuntimeError:
        return ""
    return home if len(home) > 1 else ""


def _names() -> set[str]:
    host = socket.gethostname()
    found = {host, host.partition(".")[0]}
    with contextlib.suppress(OSError, KeyError):  # nobody of that number is known here
        found.add(getpass.getuser())
    return {name.casefold() for name in found if name}
