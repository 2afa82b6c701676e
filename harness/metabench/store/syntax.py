"""The text of a Python module: its digest, what it imports, what it defines."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metabench.episodes.digest import digest_bytes


@dataclass(frozen=True)
class Import:
    """`from <level dots><module> import <names>`; without names, `import <module>`."""

    level: int
    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What is to be known of one module's text."""

    digest: str
    imports: tuple[Import, ...]
    definitions: frozenset[str]
    """Qualified names of classes and functions that are not made inside a function."""
    bound: frozenset[str]
    """Names that the module's own statements give a meaning."""


def syntax_digest(source: bytes) -> str:
    """The digest of a module's syntax tree without positions, comments and docstrings.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    return _read(source).digest


def try_read(path: Path) -> Source | None:
    """What is to be known of a file; None where it can't be read, or is no Python."""
    try:
        return _read(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _read(source: bytes) -> Source:
    tree = ast.parse(source)
    tokens: list[str] = []
    _write_tokens(tree, tokens)
    nodes = list(_running_nodes(tree))
    return Source(
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


def _imports(nodes: list[ast.AST]) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.level, node.module or "", tuple(a.name for a in node.names))


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
