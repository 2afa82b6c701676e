"""What `metabench check` was asked for: a name, module, file or project, and what is in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import metabench.clock.timer  # noqa: F401  before any plugin can replace a clock
from metabench.errors import PluginError, UsageError
from metabench.plugins import load_registry, registry
from metabench.registry import KINDS, Entry, Kind, Registry, base_of, make_entry
from metabench.testing.conformance.algorithms import CHECKS as ALGORITHM_CHECKS
from metabench.testing.conformance.backbones import CHECKS as BACKBONE_CHECKS
from metabench.testing.conformance.backbones import BackboneSubject
from metabench.testing.conformance.datasets import CHECKS as DATASET_CHECKS
from metabench.testing.conformance.datasets import DatasetSubject
from metabench.testing.conformance.finding import Check
from metabench.testing.conformance.project import entry_points_of, is_project
from metabench.testing.conformance.subject import AlgorithmSubject
from metabench.testing.conformance.suites import CHECKS as SUITE_CHECKS
from metabench.testing.conformance.suites import SuiteSubject

Subject = AlgorithmSubject | BackboneSubject | DatasetSubject | SuiteSubject

CHECKS: dict[Kind, list[Check]] = {
    "algorithm": ALGORITHM_CHECKS.all,
    "backbone": BACKBONE_CHECKS.all,
    "dataset": DATASET_CHECKS.all,
    "suite": SUITE_CHECKS.all,
}


def resolved(target: str, folder: Path | None = None) -> list[Subject]:
    """What is to be checked.

    Args:
        target: a registered name (`KIND:NAME` where two kinds share it), a folder with a
            pyproject.toml, a file (.py or .toml), or a module (`package.module`, or
            `package.module:Class`).
        folder: where data sets are.

    Raises:
        MetabenchError: there is no such thing, it can't be loaded, or nothing is in it.
    """
    known, entries = _found(target)
    if not entries:
        raise UsageError(
            f"{target} has no algorithm, backbone, data set or suite",
            "a class has to state its name, and a project its entry point in the group metabench",
        )
    return [_subject(entry, known, target, folder) for entry in entries]


def _found(target: str) -> tuple[Registry, list[Entry]]:
    path = Path(target).expanduser()
    if path.suffix == ".toml" and path.name != "pyproject.toml":
        return registry(), [make_entry("suite", path, "", f"the file {path}")]
    if path.suffix == ".py":
        return _of_module(_module_of(path), f"the file {path}")
    if names := _registered(target):
        return registry(), names
    if is_project(path):
        return _of_project(path)
    if path.exists():
        raise UsageError(
            f"{path} is no Python file, no suite and no project",
            "a project is a folder with a pyproject.toml",
        )
    module, _, name = target.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise PluginError(f"{module} cannot be imported: {error}") from error
        names_of = [name for kind in KINDS for name in registry().of(kind)]
        raise _nothing(target, names_of) from error
    known, entries = _of_module(loaded, f"the module {module}")
    return known, [e for e in entries if not name or e.source.__name__ == name]  # type: ignore[union-attr]


def _nothing(target: str, names: list[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(target, names, n=1, cutoff=0.5)
    return UsageError(
        f"there is no plugin, file, folder or module called {target!r}",
        f"did you mean {near[0]!r}?" if near else "metabench list shows every name",
    )


def _registered(target: str) -> list[Entry]:
    """What has that name, or that of KIND:NAME."""
    known = registry()
    kind, _, name = target.partition(":")
    if kind in KINDS:
        return [known.get(kind, name)]
    found = [known.of(kind)[target] for kind in KINDS if target in known.of(kind)]
    if len(found) > 1:
        kinds = " or ".join(f"{entry.kind}:{entry.name}" for entry in found)
        raise UsageError(f"{target!r} is the name of {len(found)} things", f"say which: {kinds}")
    return found


def _of_project(folder: Path) -> tuple[Registry, list[Entry]]:
    """What a project would register if it were installed."""
    for place in (folder / "src", folder):
        if place.is_dir():
            sys.path.insert(0, str(place.resolve()))
    points = entry_points_of(folder)
    # What is wrong with other plugins is not asked here.
    known = load_registry(projects=points, warn=lambda line: None)
    names = {(point.point.name, point.distribution) for point in points}
    for info in known.plugins:
        if (info.name, info.distribution) in names and info.error:
            raise PluginError(f"plugin {info.name!r} of {folder}: {info.error}")
    owners = {point.label for point in points}
    return known, [e for kind in KINDS for e in known.of(kind).values() if e.owner in owners]


def _of_module(module: ModuleType, owner: str) -> tuple[Registry, list[Entry]]:
    """The plugin classes that are defined in a module."""
    known = registry()
    entries = []
    for value in _classes(module):
        entry = make_entry(_kind_of(value), value, "", owner)
        there = known.of(entry.kind).get(entry.name)
        if there is not None and not _is_same(there, value):
            raise PluginError(
                f"the {entry.kind} name {entry.name!r} is taken by {there.owner}",
                "give it another name",
            )
        entries.append(entry)
    return known, entries


def _classes(module: ModuleType) -> Iterator[type]:
    """Those that state a name; others are somebody's base classes."""
    for value in vars(module).values():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and "name" in vars(value) and any(_is_a(value, kind) for kind in KINDS):
            yield value


def _is_a(cls: type, kind: Kind) -> bool:
    base = base_of(kind)
    return base is not None and issubclass(cls, base)


def _kind_of(cls: type) -> Kind:
    return next(kind for kind in KINDS if _is_a(cls, kind))


def _is_same(entry: Entry, cls: type) -> bool:
    """Whether a class is the registered one, perhaps loaded from its file a second time."""
    there = entry.load()
    if not isinstance(there, type):
        return False
    files = [getattr(sys.modules.get(c.__module__), "__file__", None) for c in (there, cls)]
    return there.__qualname__ == cls.__qualname__ and files[0] == files[1]


def _module_of(path: Path) -> ModuleType:
    """The module in a file, under its stem; its folder goes on the path."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{path} cannot be imported: {type(error).__name__}: {error}", "mend the file"
        ) from error
    return module


def _subject(entry: Entry, known: Registry, target: str, folder: Path | None) -> Subject:
    loaded: Any = entry.load()
    if entry.kind == "suite":
        return SuiteSubject(entry, known, loaded, folder)
    if entry.kind == "dataset":
        return DatasetSubject(entry, loaded, target, folder)
    if entry.kind == "backbone":
        return BackboneSubject(entry, loaded, target, loaded.hyperparameters())
    return AlgorithmSubject(entry, loaded, target, loaded.hyperparameters())
