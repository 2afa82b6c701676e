"""What a shell offers for an argument or option: registered names, and suite files.

Asked at each press of the Tab key, so nothing here imports PyTorch; and whatever goes wrong, a
plugin that prints or raises included, offers nothing and says nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from metabench.registry import ARGUMENT, KINDS, Kind, Registry

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of(*kinds: Kind) -> Completion:
    """The registered names of these kinds."""

    def complete(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
        return [CompletionItem(n) for n in _names(kinds) if n.startswith(typed)]

    return complete


def suites(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Registered suites and TOML files; where there are none, whatever paths the shell knows."""
    return _or_files([*_names(("suite",)), *_toml_files(typed)], typed)


def rows(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Algorithms, for rows of a table; where none begins so, whatever paths the shell knows."""
    return _or_files(_names(("algorithm",)), typed)


def anything(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """All registered names, `KIND:NAME` for those of two kinds, and TOML files."""
    everything = [(kind, name) for kind in KINDS for name in _names((kind,))]
    plain = [name for _, name in everything]
    clear = [n if plain.count(n) == 1 else f"{kind}:{n}" for kind, n in everything]
    return _or_files([*clear, *_toml_files(typed)], typed)


def _or_files(words: list[str], typed: str) -> list[CompletionItem]:
    found = [CompletionItem(word) for word in words if word.startswith(typed)]
    return found or [CompletionItem(typed, type="file")]


def _toml_files(typed: str) -> list[str]:
    """The TOML files in the folder that was typed so far, written as that was."""
    head, slash, _ = typed.rpartition("/")
    try:
        paths = sorted(Path(head + slash).expanduser().iterdir())
    except (OSError, RuntimeError):
        return []
    return [head + slash + path.name for path in paths if path.suffix == ".toml"]


def _names(kinds: Iterable[Kind]) -> list[str]:
    """Of one whose name has an argument also the beginning: what may follow, its library knows."""
    entries = [entry for kind in kinds for entry in _known().of(kind).values()]
    begun = {f"{entry.name}{ARGUMENT}" for entry in entries if entry.argument}
    return sorted({entry.name for entry in entries} | begun)


@functools.cache
def _known() -> Registry:
    """What is registered, without a word about what is wrong with any plugin."""
    from metabench.plugins import load_registry

    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            return load_registry(warn=lambda line: None)
    except Exception:  # there's nobody to tell
        return Registry()
