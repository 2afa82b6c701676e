"""A project's entry points, read from its pyproject.toml: it need not be installed."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from metabench.errors import UsageError
from metabench.plugins import GROUP, Found


def is_project(folder: Path) -> bool:
    """Whether a folder holds a Python project."""
    return (folder / "pyproject.toml").is_file()


def entry_points_of(folder: Path) -> list[Found]:
    """The plugins that a project would bring.

    Raises:
        UsageError: its pyproject.toml can't be read, or names none.
    """
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        points = project.get("entry-points", {}).get(GROUP, {})
        named = [EntryPoint(name, value, GROUP) for name, value in points.items()]
        name, version = str(project.get("name", folder.name)), str(project.get("version", "0"))
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not named:
        raise UsageError(
            f"{path} names no plugin", f'add [project.entry-points.{GROUP}] with name = "module"'
        )
    return [Found(point, name, version) for point in named]
