"""Writes a plugin's project: what `metabench new` leaves in a folder, ready to be installed."""

from __future__ import annotations

import keyword
import re
import tempfile
from importlib.resources import files
from pathlib import Path

import metabench
from metabench.errors import PluginError, UsageError
from metabench.registry import KINDS, Kind, Registry

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40
_TAKEN = {*metabench.__all__, "Annotated", "F", "None", "True", "False"}
"""What the templates import, or may."""
COMMON = ("pyproject.toml", "README.md", "tests/test_conformance.py", ".gitignore")


def write_project(kind: Kind, name: str, parent: Path, known: Registry) -> list[Path]:
    """Write a project into a new folder `parent / name`, whole or not at all.

    Args:
        kind: what the plugin is.
        name: of the plugin, as users will call it, and of the folder.
        parent: the folder that the new one goes into.
        known: whose names are taken.

    Returns:
        the files, in the order in which one reads them.

    Raises:
        UsageError: no such name is possible, or the folder is there already.
        PluginError: the name is taken.
    """
    _check(kind, name, known)
    folder = parent / name
    if folder.exists():
        raise UsageError(f"{folder} is there already", "choose another name, or another folder")
    module = name.replace("-", "_")
    package = f"metabench_{module}"
    facts = {
        "kind": kind,
        "name": name,
        "module": module,
        "package": package,
        "distribution": f"metabench-{name}",
        "cls": _class_name(name),
    }
    own = f"{name}.toml" if kind == "suite" else f"{module}.py"
    places = {f"common/{path}": path for path in COMMON}
    if kind != "suite":
        places["common/try.toml"] = "try.toml"
    places[f"{kind}/__init__.py"] = f"src/{package}/__init__.py"
    places[f"{kind}/plugin"] = f"src/{package}/{own}"
    # All texts before the first file: a fault in one of them leaves nothing.
    texts = {to: _filled(template, facts) for template, to in places.items()}
    with tempfile.TemporaryDirectory(dir=parent) as draft:
        for to, text in texts.items():
            path = Path(draft) / name / to
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (Path(draft) / name).rename(folder)
    return sorted(folder / to for to in texts)


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def _check(kind: Kind, name: str, known: Registry) -> None:
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(
            f"{name!r} is no name for a plugin",
            f"up to {LONGEST} of a-z, 0-9 and '-', beginning with a letter, such as my-{kind}",
        )
    if (
        keyword.iskeyword(name.replace("-", "_"))
        or _class_name(name) in _TAKEN
        or name == "plugins"
    ):
        raise UsageError(f"{name!r} has a meaning already", f"choose another, such as my-{name}")
    for other in KINDS:
        if name in known.of(other):
            owner = known.of(other)[name].owner
            raise PluginError(f"the {other} name {name!r} is taken by {owner}", "choose another")


def _filled(template: str, facts: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # texts of our own, and no HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    text = files(__name__).joinpath("templates", f"{template}.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(facts)
