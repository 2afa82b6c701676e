"""What a plugin's code is: a digest that changes with what it does, and with nothing else.

The modules that a class stands on are found by reading files: those of the classes it inherits
from, and what they import from their own package, followed statement by statement. An `__init__.py`
counts where a name is taken from it, not because it lies on the way to a module: a package's list
of plugins is no part of each plugin. Imports by a string (`importlib`) aren't followed. Of other
libraries that these modules import, the version counts.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metabench.episodes.digest import digest, digest_bytes
from metabench.store.syntax import Import, syntax_digest, try_read

CORE = ("episodes", "engine", "api")
"""Packages of metabench that decide numbers; the rest (command line, reports, store) does not."""

CORE_MODULES = ("data/weights.py",)
"""Beside them: which tensors of a file become a backbone's weights."""

OUTSIDE = frozenset({"torch", "torchvision", "timm", "numpy", "pydantic"})
"""Packages that are not read, as Python's own aren't: their version stands for them."""

WITHOUT_VERSION = frozenset({"torch", "metabench"})
"""PyTorch's version is a part of a cell's numerics, and metabench's core is read."""

Thing = type | Callable[..., Any]


def code_digest(*things: Thing) -> str | None:
    """The digest of the code behind some classes and functions, and of metabench's core.

    Changing a comment, a docstring or the formatting changes nothing; changing a statement in any
    module that they stand on, or in `metabench.episodes`, `.engine`, `.api` or `.data.weights`,
    does. So does another version of a library that these modules import.

    Returns:
        32 hexadecimal digits; None where the source can't be read (a notebook, `exec`, a class or
        function made inside a function, which depends on more than its text).
    """
    core = core_digest()
    places: list[_Place] = []
    for thing in things:
        found = _places(thing)
        if found is None:
            return None
        places += found
    found_files = _reachable(places)
    if core is None or found_files is None:
        return None
    files, libraries = found_files
    names = sorted({f"{thing.__module__}.{thing.__qualname__}" for thing in map(_bare, things)})
    main = ("__main__.", "__mp_main__.")  # a script's name differs between it and its workers
    names = [name.split(".", 1)[1] if name.startswith(main) else name for name in names]
    return digest([core, names, sorted(files), _versions(libraries)])


@functools.cache
def core_digest() -> str | None:
    """The digest of metabench's modules that decide numbers; None without their source."""
    root = Path(__file__).parents[1]
    paths = [path for package in CORE for path in (root / package).rglob("*.py")]
    paths += [path for module in CORE_MODULES if (path := root / module).is_file()]
    files = {path.relative_to(root).as_posix(): syntax_digest(path.read_bytes()) for path in paths}
    return digest(sorted(files.items())) if files else None


@dataclass(frozen=True)
class _Place:
    """A module: its dotted name, its file, and the folder that its top-level package lies in."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def root(self) -> Path:
        return self.path.parents[len(self.name.split(".")) - (0 if self.is_package else 1)]

    @property
    def relative(self) -> str:
        return self.path.relative_to(self.root).as_posix()


def _bare(thing: Thing) -> Any:
    return getattr(thing, "__func__", thing)


def _places(thing: Thing) -> list[_Place] | None:
    """The modules in which a class with its bases, or a function, is written; None: can't be read.

    A bound method stands on its object's class.
    """
    owner = getattr(thing, "__self__", None)
    if isinstance(thing, type):
        parts: list[Any] = list(inspect.getmro(thing))
    elif inspect.isfunction(_bare(thing)):
        kind = owner if isinstance(owner, type) else type(owner)
        parts = [_bare(thing), *(inspect.getmro(kind) if owner is not None else ())]
    else:
        return None  # a callable object, a partial: it depends on what it holds
    places = []
    for part in parts:
        if _is_outside(part.__module__):
            if not _stands_there(part):  # `type("Made", bases, {})` claims to be of `abc`
                return None
            continue
        place = _place(part.__module__)
        source = try_read(place.path) if place is not None else None
        if place is None or source is None or part.__qualname__ not in source.definitions:
            return None
        places.append(place)
    return places


def _is_outside(module: str) -> bool:
    top, _, rest = module.partition(".")
    if top == "__main__":
        return False
    of_core = top == "metabench" and rest.partition(".")[0] in CORE
    return of_core or top in OUTSIDE or _is_standard(top)


def _is_standard(top: str) -> bool:
    """Whether a top-level module is Python's own, by where it lies: a user's may share its name."""
    if top not in sys.stdlib_module_names:
        return False
    module = sys.modules.get(top)
    spec = find_spec(top) if module is None else module.__spec__
    if spec is None and module is None:  # of another platform
        return True
    if spec is not None and not spec.has_location and spec.submodule_search_locations is None:
        return True  # built into the interpreter
    file = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
    if file is None:  # a folder without an `__init__.py`
        return False
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not _standard_folders().isdisjoint(path.parents)


@functools.cache
def _standard_folders() -> frozenset[Path]:
    """Where Python's own modules lie."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return frozenset(Path(path).resolve() for path in [*paths, os.path.dirname(os.__file__)])


def _stands_there(part: Any) -> bool:
    found: Any = sys.modules.get(part.__module__)
    for name in part.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is part


def _place(name: str) -> _Place | None:
    """Where a loaded module was read from."""
    if name in {"__main__", "__mp_main__"} and _is_interactive():
        return None  # what was typed may be newer than the file
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    path = Path(file).absolute()
    full_name = getattr(getattr(module, "__spec__", None), "name", name)  # `python -m`
    tail = path.parent if path.name == "__init__.py" else path.with_suffix("")
    parts = tuple(full_name.split("."))
    return _Place(full_name if tail.parts[-len(parts) :] == parts else tail.name, path)


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or hasattr(builtins, "__IPYTHON__")


def _reachable(starts: list[_Place]) -> tuple[set[tuple[str, str]], set[str]] | None:
    """These modules and all that they import from beside them, and what else they import.

    Returns:
        (relative path, digest) of each module, and top-level names of other libraries; None where
        one cannot be read.
    """
    files: set[tuple[str, str]] = set()
    libraries: set[str] = set()
    queue = list(starts)
    seen: set[Path] = set()
    while queue:
        place = queue.pop()
        if place.path in seen:
            continue
        seen.add(place.path)
        if place.path.suffix != ".py":  # an extension module
            files.add((place.relative, digest_bytes(place.path.read_bytes()).hex()))
            continue
        source = try_read(place.path)
        if source is None:
            return None
        files.add((place.relative, source.digest))
        for statement in source.imports:
            queue += _targets(place, statement)
            top = statement.module.partition(".")[0]
            if not (statement.level or _is_beside(place, top) or _is_standard(top)):
                libraries.add(top)
    return files, libraries


def _versions(libraries: set[str]) -> list[str]:
    """`name==version` of the distributions that these top-level names were installed with.

    What no distribution claims is read instead.
    """
    names = libraries - WITHOUT_VERSION
    owners = _distributions() if names else {}  # which takes a moment, and most import nothing else
    found = {owner for name in names for owner in owners.get(name, ())}
    # Without the label of a build (`+cpu`): the device has its own place in a cell's key.
    versions = [f"{name}=={version(name).partition('+')[0]}" for name in found]
    return sorted([*versions, *(f"{name}={_whole(name)}" for name in names - owners.keys())])


@functools.cache
def _whole(name: str) -> str:
    """The digest of a package or module that no distribution claims, as an editable install's.

    Empty where there is none of that name.
    """
    spec = find_spec(name)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    paths = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for path in folder.rglob("*.py")
    }
    if spec is not None and not folders and spec.origin is not None:
        paths = {name: Path(spec.origin)}
    digests = [
        (relative, digest_bytes(path.read_bytes()).hex()) for relative, path in paths.items()
    ]
    return digest(sorted(digests)) if digests else ""


def _targets(place: _Place, statement: Import) -> Iterator[_Place]:
    """The modules beside `place` that one import statement takes something from."""
    parts = statement.module.split(".") if statement.module else []
    if statement.level:
        package = place.name.split(".")
        drop = statement.level - (1 if place.is_package else 0)
        parts = package[: len(package) - drop] + parts
    if not parts or not _is_beside(place, parts[0]):
        return
    target = _find(place.root, parts)
    text = try_read(target.path) if target and target.path.suffix == ".py" else None
    if not statement.names:
        if target is not None:
            yield target
        return
    for name in statement.names:
        module = _find(place.root, [*parts, name])
        if module is not None:
            yield module
        if target is not None and (module is None or (text and name in text.bound)):
            yield target


def _is_beside(place: _Place, top: str) -> bool:
    """Whether a top-level name belongs with a module: its package, or its neighbours.

    Neighbours are what lies in the same folder; where packages are installed side by side, what
    came with the same distribution.
    """
    own = place.name.split(".", 1)[0]
    if top == own:
        return True
    if top in OUTSIDE or top == "metabench" or _find(place.root, [top]) is None:
        return False
    if _is_standard(top):
        return False
    if place.root.name not in {"site-packages", "dist-packages"}:
        return True
    owners = _distributions()
    return bool(set(owners.get(own, ())) & set(owners.get(top, ())))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _find(root: Path, parts: list[str]) -> _Place | None:
    """The file of a dotted name below a folder; None for a namespace package or nothing."""
    base = root.joinpath(*parts)
    name = ".".join(parts)
    candidates = [base / "__init__.py"]
    candidates += [base.parent / f"{base.name}{end}" for end in (".py", *EXTENSION_SUFFIXES)]
    return next((_Place(name, path) for path in candidates if path.is_file()), None)
