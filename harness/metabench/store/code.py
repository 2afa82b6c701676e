"""What a plugin's code is: a digest that changes with what it does, and with nothing else.

The modules that a class stands on are found by reading files: those of the classes it inherits
from, and what they import from their own package, followed statement by statement. An `__init__.py`
counts where a name is taken from it, not because it lies on the way to a module: a package's list
of plugins is no part of each plugin. Imports by a string (`importlib`) aren't followed.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from metabench.episodes.digest import digest, digest_bytes

CORE = ("episodes", "engine", "api")
"""Packages of metabench that decide numbers; the rest (command line, reports, store) does not."""

OUTSIDE = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "pydantic"}
"""Packages that are not read: Python's own, and those whose version stands for them."""

Thing = type | Callable[..., Any]


def code_digest(*things: Thing) -> str | None:
    """The digest of the code behind some classes and functions, and of metabench's core.

    Changing a comment, a docstring or the formatting changes nothing; changing a statement in any
    module that they stand on, or in `metabench.episodes`, `.engine` or `.api`, does.

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
    files = _reachable(places)
    if core is None or files is None:
        return None
    names = sorted({f"{thing.__module__}.{thing.__qualname__}" for thing in map(_bare, things)})
    main = ("__main__.", "__mp_main__.")  # a script's name differs between it and its workers
    names = [name.split(".", 1)[1] if name.startswith(main) else name for name in names]
    return digest([core, names, sorted(files)])


@functools.cache
def core_digest() -> str | None:
    """The digest of metabench's packages that decide numbers; None without their source."""
    root = Path(__file__).parents[1]
    files = {
        path.relative_to(root).as_posix(): syntax_digest(path.read_bytes())
        for package in CORE
        for path in (root / package).rglob("*.py")
    }
    return digest(sorted(files.items())) if files else None


def syntax_digest(source: bytes) -> str:
    """The digest of a module's syntax tree without positions, comments and docstrings.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    return _read(source).digest


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


@dataclass(frozen=True)
class _Import:
    """`from <level dots><module> import <names>`; without names, `import <module>`."""

    level: int
    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What is to be known of one module's text."""

    digest: str
    imports: tuple[_Import, ...]
    definitions: frozenset[str]
    """Qualified names of classes and functions that are not made inside a function."""
    bound: frozenset[str]
    """Names that the module's own statements give a meaning."""


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
        source = _try_read(place.path) if place is not None else None
        if place is None or source is None or part.__qualname__ not in source.definitions:
            return None
        places.append(place)
    return places


def _is_outside(module: str) -> bool:
    top, _, rest = module.partition(".")
    if top == "__main__":
        return False
    return top in OUTSIDE or (top == "metabench" and rest.partition(".")[0] in CORE)


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


def _reachable(starts: list[_Place]) -> set[tuple[str, str]] | None:
    """(relative path, digest) of these modules and all that they import from beside them."""
    files: set[tuple[str, str]] = set()
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
        source = _try_read(place.path)
        if source is None:
            return None
        files.add((place.relative, source.digest))
        for statement in source.imports:
            queue += _targets(place, statement)
    return files


def _targets(place: _Place, statement: _Import) -> Iterator[_Place]:
    """The modules beside `place` that one import statement takes something from."""
    parts = statement.module.split(".") if statement.module else []
    if statement.level:
        package = place.name.split(".")
        drop = statement.level - (1 if place.is_package else 0)
        parts = package[: len(package) - drop] + parts
    if not parts or not _is_beside(place, parts[0]):
        return
    target = _find(place.root, parts)
    text = _try_read(target.path) if target and target.path.suffix == ".py" else None
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


def _try_read(path: Path) -> _Source | None:
    try:
        return _read(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _read(source: bytes) -> _Source:
    tree = ast.parse(source)
    tokens: list[str] = []
    _write_tokens(tree, tokens)
    nodes = list(_running_nodes(tree))
    return _Source(
        digest=digest_bytes("\n".join(tokens).encode()).hex(),
        imports=tuple(_imports(nodes)),
        definitions=frozenset(_definitions(tree)),
        bound=frozenset(_bound_names(tree)),
    )


def _write_tokens(node: Any, tokens: list[str]) -> None:
    """Append a syntax tree; empty fields are left out, which differ between Python versions."""
    if isinstance(node, ast.AST):
        tokens.append(type(node).__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if field == "body":
                value = _without_docstring(node, value)
            if value is not None and value != []:
                tokens.append(field)
                _write_tokens(value, tokens)
        tokens.append(";")
    elif isinstance(node, list):
        tokens.append("[")
        for item in node:
            _write_tokens(item, tokens)
        tokens.append("]")
    else:
        tokens.append(f"{type(node).__name__} {node!r}")


def _without_docstring(node: ast.AST, body: Any) -> Any:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if not isinstance(node, documented) or ast.get_docstring(node, clean=False) is None:
        return body
    return body[1:]


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    yield node
    children: Iterator[ast.AST] | list[ast.stmt] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _running_nodes(child)


def _imports(nodes: list[ast.AST]) -> Iterator[_Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (_Import(0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(node.level, node.module or "", tuple(a.name for a in node.names))


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Qualified names of classes and functions outside of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
        else:
            yield from _definitions(child, prefix)


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module's statements bind: by definition, assignment or import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
