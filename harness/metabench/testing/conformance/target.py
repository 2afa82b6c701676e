"""What `metabench check` was asked for: a name, module, file or project, and what is in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import metabench.clock.timer  # noqa: F401  before any plugin can replace a clock
from metabench.errors import PluginError, UsageError
from metabench.plugins import load_registry, registry
from metabench.registry import KINDS, Entry, Kind, Registry, base_of, make_entry
from metabench.runner.overrides import parse_value
from metabench.runner.resolve import settings_of
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


def resolved(
    target: str,
    folder: Path | None = None,
    scratch: Path | None = None,
    settings: Sequence[str] = (),
) -> list[Subject]:
    """What is to be checked.

    Args:
        target: a registered name (`KIND:NAME` where two kinds share it), a folder with a
            pyproject.toml, a file (.py or .toml), or a module (`package.module`, or
            `package.module:Class`).
        folder: where data sets are.
        scratch: a folder for what is made; None: one that goes with the process.
        settings: hyper-parameters of the one plugin that is checked, as `KEY=VALUE`.

    Raises:
        MetabenchError: there is no such thing, it can't be loaded, or nothing is in it.
    """
    known, entries = _found(target)
    if not entries:
        raise UsageError(
            f"{target} has no algorithm, backbone, data set or suite",
            "a class has to state its name, and a project its entry point in the group metabench",
        )
    names = [(entry.kind, entry.name) for entry in entries]
    if len(set(names)) < len(names):
        raise UsageError(f"{target} has two plugins of one kind and name")
    table = _table(entries, settings)
    return [_subject(entry, known, target, folder, scratch, table) for entry in entries]


def _table(entries: Sequence[Entry], settings: Sequence[str]) -> dict[str, Any]:
    """Hyper-parameters by name, as they were typed."""
    if settings and (len(entries) > 1 or entries[0].kind not in ("algorithm", "backbone")):
        raise UsageError(
            "--set is for one algorithm or one backbone",
            "name it: metabench check KIND:NAME --set KEY=VALUE",
        )
    table = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UsageError(f"--set {text}: no such form", "write --set KEY=VALUE")
        table[key.strip()] = parse_value(value)
    return table


def _found(target: str) -> tuple[Registry, list[Entry]]:
    path = Path(target).expanduser()
    if path.suffix == ".toml" and path.name != "pyproject.toml":
        return registry(), [make_entry("suite", path, "", f"the file {path}")]
    if path.suffix == ".py":
        return _of_module(_module_of(path), f"the file {path}")
    is_path = target.startswith((".", "~")) or os.sep in target
    if not is_path and (names := _registered(target)):
        return registry(), names
    if is_project(path):
        return _of_project(path)
    if is_path or path.exists():
        raise UsageError(
            f"{path} is no Python file, no suite and no project",
            "a project is a folder with a pyproject.toml",
        )
    module, _, name = target.partition(":")
    known, entries = _of_module(_imported(module, target), f"the module {module}")
    return known, [e for e in entries if not name or e.source.__name__ == name]  # type: ignore[union-attr]


def _imported(module: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        if missing:
            raise _nothing(target) from error
        raise PluginError(
            f"{module} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _nothing(target: str) -> UsageError:
    near = registry().nearest(target)
    return UsageError(
        f"there is no plugin, file, folder or module called {target!r}",
        f"did you mean {near!r}?" if near else "metabench list shows every name",
    )


def _registered(target: str) -> list[Entry]:
    """What has that name, or that of KIND:NAME."""
    known = registry()
    kind, colon, name = target.partition(":")
    if colon and kind in KINDS:
        return [known.get(kind, name)]
    if colon and not name and kind in known.backbones:  # `torchvision:` would be a module
        return [known.get("backbone", target)]
    found = [entry for kind in KINDS if (entry := known.find(kind, target)) is not None]
    if len(found) > 1:
        kinds = " or ".join(f"{entry.kind}:{entry.name}" for entry in found)
        raise UsageError(f"{target!r} is the name of {len(found)} things", f"say which: {kinds}")
    return found


def _of_project(folder: Path) -> tuple[Registry, list[Entry]]:
    """What a project would register if it were installed."""
    folder = folder.resolve()
    for place in (folder, folder / "src"):  # the last one stands first
        if place.is_dir():
            sys.path.insert(0, str(place))
    points = entry_points_of(folder)
    for point in points:
        _forget(point.point.module.partition(".")[0])  # where it is installed too
    # What is wrong with other plugins is not asked here.
    known = load_registry(projects=points, warn=lambda line: None)
    names = {(point.point.name, point.distribution) for point in points}
    for point in points:
        file = getattr(sys.modules.get(point.point.module), "__file__", None)
        if file is not None and not Path(file).resolve().is_relative_to(folder):
            raise PluginError(f"{point.point.module} was imported from {file}, not from {folder}")
    for info in known.plugins:
        if (info.name, info.distribution) in names and info.error:
            raise PluginError(f"plugin {info.name!r} of {folder}: {info.error}")
    owners = {point.label for point in points}
    return known, [e for kind in KINDS for e in known.of(kind).values() if e.owner in owners]


def _forget(package: str) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]


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
    """Those that state a name, its own or its submodules'; others are somebody's base classes."""
    inside = (module.__name__, f"{module.__name__}.")
    for value in dict.fromkeys(v for v in vars(module).values() if isinstance(v, type)):
        own = value.__module__ == inside[0] or value.__module__.startswith(inside[1])
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
    """The module in a file, under a name that no other has; its folder goes on the path."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"metabench_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{path} cannot be imported: {type(error).__name__}: {error}", "mend the file"
        ) from error
    return module


def _subject(
    entry: Entry,
    known: Registry,
    target: str,
    folder: Path | None,
    scratch: Path | None,
    table: dict[str, Any],
) -> Subject:
    loaded: Any = entry.load()
    if entry.kind == "suite":
        return SuiteSubject(entry, known, loaded, folder)
    if entry.kind == "dataset":
        return DatasetSubject(entry, loaded, target, folder, scratch)
    if entry.kind == "backbone":
        small = {} if entry.settings else loaded.checked_with
        return BackboneSubject(entry, loaded, target, settings_of(entry, {**small, **table}))
    return AlgorithmSubject(entry, loaded, target, settings_of(entry, table))
