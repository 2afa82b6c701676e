"""Guarded discovery and loading of plugins, and the registry of what they brought.

pluggy's own entry-point loader and hook call end at the first plugin that raises. Here every
plugin is imported, registered, checked and called by itself: one that fails (an exception or
`sys.exit`) costs one warning that names its distribution, version and line, and registers nothing.
PyTorch is not imported here, nor are the classes behind `Lazy` entries.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

from metabench import hookspecs
from metabench.errors import PluginError
from metabench.registry import KINDS, Entry, Kind, Registry, make_entry
from metabench.rendering import plain

GROUP = "metabench"
DISABLE = "METABENCH_DISABLE_PLUGINS"
EVERYTHING = "all"
"""In `METABENCH_DISABLE_PLUGINS`: every plugin but the built-in one."""
OWN_DISTRIBUTION = "metabench"
LONGEST = 300
"""Characters of a plugin's own error text that its one line may have."""

Status = Literal["loaded", "loaded in part", "failed", "disabled"]
_OUTCOME: dict[Status, str] = {"failed": "is left out", "loaded in part": "is loaded in part"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginInfo:
    """What became of a plugin.

    Attributes:
        name: of its entry point.
        distribution, version: of the package that it came in.
        status: loaded, loaded in part (some of its names were refused), failed (nothing of it is
            registered) or disabled.
        error: why it failed, or which of its names were refused; empty where all is well.
    """

    name: str
    distribution: str
    version: str
    status: Status
    error: str = ""


@dataclass
class Found:
    """An entry point, and how far its loading has come.

    Attributes:
        point: the entry point.
        distribution, version: of the package that it came in.
        where: `file:line` of what runs now, for errors that carry no frame of the plugin.
    """

    point: importlib.metadata.EntryPoint
    distribution: str
    version: str
    where: str = ""

    @property
    def builtin(self) -> bool:
        return self.distribution == OWN_DISTRIBUTION

    @property
    def label(self) -> str:
        return f"plugin {self.point.name!r} of {self.distribution} {self.version}"

    def info(self, status: Status, error: str = "") -> PluginInfo:
        return PluginInfo(self.point.name, self.distribution, self.version, status, error)


def load_registry(
    *,
    strict: bool = False,
    warn: Callable[[str], None] = _logger.warning,
    projects: Iterable[Found] = (),
) -> Registry:
    """Load every installed plugin that `METABENCH_DISABLE_PLUGINS` does not name.

    Args:
        strict: raise instead of warning.
        warn: called with one line for each plugin that failed or had a name refused, and for each
            name in `METABENCH_DISABLE_PLUGINS` that no plugin has.
        projects: plugins of projects that need not be installed; where one is, it counts as it
            stands here.

    Raises:
        PluginError: `strict`, and a plugin failed or wanted a name that is taken.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    disabled, everything = _disabled(), _discover(projects)
    for line in _disabled_in_vain(disabled, everything):
        warn(line)
    for found in everything:
        if _is_disabled(found, disabled):
            registry.plugins.append(found.info("disabled"))
            continue
        info = _load_one(manager, found, registry)
        registry.plugins.append(info)
        if info.error:
            problem = plain(f"{found.label} {_OUTCOME[info.status]}: {info.error}")
            if strict:
                raise PluginError(problem, f"mend it, uninstall it, or set {DISABLE}={info.name}")
            warn(problem)
    return registry


@functools.cache
def registry(strict: bool = False) -> Registry:
    """`load_registry`, once a process."""
    return load_registry(strict=strict)


def _discover(projects: Iterable[Found] = ()) -> list[Found]:
    """The entry points of our group, built-in first, then by distribution and name.

    Of two installations of one distribution the first on the path counts, as it does for Python.
    """
    found: dict[str, list[Found]] = {}
    for project in projects:
        found.setdefault(_normal(project.distribution), []).append(project)
    for distribution in importlib.metadata.distributions():
        # Somebody's broken metadata is not our plugin's fault, nor ours.
        with contextlib.suppress(Exception):
            points = [p for p in distribution.entry_points if p.group == GROUP]
            name = distribution.metadata["Name"] if points else ""
            if name and _normal(name) not in found:
                version = distribution.version
                found[_normal(name)] = [Found(p, name, version) for p in points]
    everything = [f for of_one in found.values() for f in of_one]
    return sorted(everything, key=lambda f: (not f.builtin, _normal(f.distribution), f.point.name))


def _disabled() -> set[str]:
    return {_normal(word) for word in os.environ.get(DISABLE, "").split(",") if word.strip()}


def _is_disabled(found: Found, disabled: set[str]) -> bool:
    return bool(_names(found) & disabled) or (EVERYTHING in disabled and not found.builtin)


def _names(found: Found) -> set[str]:
    return {_normal(found.point.name), _normal(found.distribution)}


def _disabled_in_vain(disabled: set[str], everything: list[Found]) -> Iterator[str]:
    """A line for each name of `METABENCH_DISABLE_PLUGINS` that no plugin has."""
    names = {name for found in everything for name in _names(found)}
    for word in sorted(disabled - names - {EVERYTHING}):
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "metabench list plugins shows their names"
        yield plain(f"{DISABLE} names {word!r}, and there is no such plugin; {hint}")


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _load_one(manager: pluggy.PluginManager, found: Found, registry: Registry) -> PluginInfo:
    """Load one plugin and put what it brings into the registry; never raises for its faults."""
    try:
        # A plugin that prints while it loads must not end up in somebody's JSON.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = found.point.load()
            _register(manager, plugin, found)
            brought = [
                (entry, found.where)
                for kind in KINDS
                for entry in _entries(manager, plugin, kind, found)
            ]
    except (Exception, SystemExit) as error:
        _forget(manager, found)
        return found.info("failed", _describe(error, found))
    refused = [
        f"{refusal} ({where})" for entry, where in brought if (refusal := registry.add(entry))
    ]
    return found.info("loaded in part" if refused else "loaded", "; ".join(refused))


def _register(manager: pluggy.PluginManager, plugin: Any, found: Found) -> None:
    """Register with pluggy, and do its `check_pending` for this one plugin.

    Raises:
        PluginError: a hook that does not exist, or none at all.
        pluggy.PluginValidationError: a hook with the wrong arguments.
    """
    found.where = getattr(plugin, "__file__", None) or found.point.value
    manager.register(plugin, name=_key(found))
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise PluginError("it implements no hook (is @metabench.hookimpl missing?)")
    for caller in callers:
        for implementation in _own(caller, plugin):
            if not caller.has_spec() and not implementation.optionalhook:
                found.where = _position(implementation.function)
                hooks = [f"metabench_register_{kind}s" for kind in KINDS]
                near = difflib.get_close_matches(caller.name, hooks, n=1, cutoff=0)
                raise PluginError(f"there is no hook {caller.name!r}; the nearest is {near[0]!r}")


def _entries(
    manager: pluggy.PluginManager, plugin: Any, kind: Kind, found: Found
) -> Iterator[Entry]:
    """Call one hook of one plugin and check what it returns."""
    hook = f"metabench_register_{kind}s"
    for implementation in _own(getattr(manager.hook, hook), plugin):
        found.where = _position(implementation.function)
        if implementation.wrapper or implementation.hookwrapper:
            raise PluginError(f"{hook} is called plugin by plugin and cannot be wrapped")
        brought = implementation.function()
        if isinstance(brought, str) or not isinstance(brought, Iterable):
            raise PluginError(f"{hook} returned {type(brought).__name__}, not a list")
        for item in brought:
            yield make_entry(kind, item, found.point.name, found.label)


def _own(caller: pluggy.HookCaller, plugin: Any) -> list[pluggy.HookImpl]:
    return [i for i in caller.get_hookimpls() if i.plugin is plugin]


def _forget(manager: pluggy.PluginManager, found: Found) -> None:
    if manager.has_plugin(_key(found)):
        manager.unregister(name=_key(found))


def _key(found: Found) -> str:
    return f"{found.distribution}:{found.point.name}"


def _describe(error: BaseException, found: Found) -> str:
    """What went wrong and at which line of the plugin."""
    if isinstance(error, SystemExit):
        what = f"it called sys.exit({error.code!r})"
    elif isinstance(error, PluginError):
        what = error.message
    else:
        try:
            what = f"{type(error).__name__}: {error}"
        except Exception:  # an exception whose __str__ raises
            what = type(error).__name__
    if len(what) > LONGEST:
        what = what[:LONGEST] + "..."
    return f"{what} ({_line(error, found) or found.where or found.point.value})"


def _line(error: BaseException, found: Found) -> str:
    """`file:line` of the innermost frame that is the plugin's own; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    if isinstance(error, PluginError):
        return ""
    top = found.point.module.partition(".")[0]
    lines = [
        f"{frame.f_code.co_filename}:{number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == top
    ]
    return lines[-1] if lines else ""


def _position(function: Callable[..., object]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
