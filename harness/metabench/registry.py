"""The registry: what is registered under which name, and how it is loaded when it is used."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from metabench.errors import PluginError, UnknownNameError, UsageError, unknown_name
from metabench.hookspecs import Lazy

if TYPE_CHECKING:
    from metabench.plugins import PluginInfo

Kind = Literal["algorithm", "backbone", "dataset", "suite"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FACTS = ("family", "inference", "reference", "summary", "argument")

ARGUMENT = ":"
"""Between a name and its argument."""

_NAME = re.compile(r"[a-z0-9][a-z0-9+_-]{0,63}")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_BASES: dict[Kind, tuple[str, str]] = {
    "algorithm": ("metabench.api.algorithm", "Algorithm"),
    "backbone": ("metabench.api.backbone", "Backbone"),
    "dataset": ("metabench.api.dataset", "Dataset"),
}


@dataclass(frozen=True)
class Entry:
    """Something registered. All texts are a plugin's own: escape them where they are printed.

    Attributes:
        name: what users call it; `NAME:VALUE` where the name has an argument.
        kind: algorithm, backbone, dataset or suite.
        plugin: the plugin's name, as `metabench list plugins` shows it.
        owner: the plugin with its distribution and version, for messages.
        family, inference, reference, summary, argument: as on the class.
        source: the class, the `package.module:Class` to import, or the suite's file.
    """

    name: str
    kind: Kind
    plugin: str
    owner: str
    source: type | str | Path
    family: str = ""
    inference: str = ""
    reference: str = ""
    summary: str = ""
    argument: str = ""

    @property
    def plain_name(self) -> str:
        """The registered name, without an argument."""
        return self.name.partition(ARGUMENT)[0]

    @property
    def settings(self) -> dict[str, str]:
        """The hyper-parameter that the name sets: `torchvision:resnet18`, its network."""
        value = self.name.partition(ARGUMENT)[2]
        return {self.argument: value} if value else {}

    @property
    def form(self) -> str:
        """How it is named: `conv4`, `torchvision:NAME`."""
        return f"{self.name}{ARGUMENT}NAME" if self.argument and not self.settings else self.name

    def load(self) -> Any:
        """The class, imported now where it is lazy; a suite's file (a `Path`).

        Raises:
            PluginError: it cannot be imported or is not what it was registered as.
        """
        if not isinstance(self.source, str):
            return self.source
        module, _, attribute = self.source.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.owner} cannot be imported from"
                f" {self.source}: {type(error).__name__}: {error}",
                "mend the plugin or uninstall it; metabench list plugins shows where it comes from",
            ) from error
        _check_class(self.kind, found, self.source)
        if found.name != self.plain_name:
            raise PluginError(
                f"{self.source} calls itself {found.name!r}; {self.owner} registered it as"
                f" {self.plain_name!r}"
            )
        return found


@dataclass(frozen=True)
class Registry:
    """What is registered, by kind and name, in the order of registration; and by whom."""

    algorithms: dict[str, Entry] = field(default_factory=dict)
    backbones: dict[str, Entry] = field(default_factory=dict)
    datasets: dict[str, Entry] = field(default_factory=dict)
    suites: dict[str, Entry] = field(default_factory=dict)
    plugins: list[PluginInfo] = field(default_factory=list)

    def of(self, kind: Kind) -> dict[str, Entry]:
        """The entries of one kind."""
        entries: dict[str, Entry] = getattr(self, f"{kind}s")
        return entries

    def find(self, kind: Kind, name: str) -> Entry | None:
        """The entry of that name, which may have an argument (`torchvision:resnet18`), or None.

        Whether the value that an argument has is possible, its hyper-parameter says.
        """
        plain, colon, value = name.partition(ARGUMENT)
        entry = self.of(kind).get(plain)
        if entry is None or not colon:
            return entry
        return replace(entry, name=name) if entry.argument and value else None

    def get(self, kind: Kind, name: str) -> Entry:
        """As `find`.

        Raises:
            UnknownNameError: there is none; names the nearest, and plugins that failed to load.
        """
        entry = self.find(kind, name)
        if entry is None:
            raise self.unknown(kind, name)
        return entry

    def unknown(self, kind: Kind, name: str) -> UnknownNameError:
        """The error for a name that nothing of a kind has."""
        plain, colon, _ = name.partition(ARGUMENT)
        entries = self.of(kind)
        if colon and plain in entries:
            form = entries[plain].form
            return UnknownNameError(f"there is no {kind} called {name!r}", f"it is called {form}")
        error = unknown_name(kind, name, entries)
        if near := self.nearest(name, (kind,)):
            error.hint = f"did you mean {near!r}?"
        failed = [plugin.name for plugin in self.plugins if plugin.status == "failed"]
        if failed:
            error.hint += f" (plugins that failed to load: {', '.join(failed)})"
        return error

    def nearest(self, name: str, kinds: Iterable[Kind] = KINDS) -> str | None:
        """The registered name that a misspelt one was most likely meant to be, if there is one.

        What stands behind a colon is kept where the name before it is one that has an argument.
        """
        entries = [entry for kind in kinds for entry in self.of(kind).values()]
        plain, colon, value = name.partition(ARGUMENT)
        if colon:
            takes = [entry.name for entry in entries if entry.argument]
            if near := difflib.get_close_matches(plain, takes, n=1, cutoff=0.5):
                return f"{near[0]}{ARGUMENT}{value or 'NAME'}"
        names = [entry.name for entry in entries]
        return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), None)

    def add(self, entry: Entry) -> str:
        """Register an entry; where its name is taken, leave it out and return whose the name is."""
        entries = self.of(entry.kind)
        if entry.name in entries:
            return f"the {entry.kind} name {entry.name!r} is taken by {entries[entry.name].owner}"
        entries[entry.name] = entry
        return ""

    def with_classes(self, classes: Iterable[type]) -> Registry:
        """A registry that knows these classes too (defined in a notebook, for instance).

        Raises:
            PluginError: a class lacks a fact or a method, or its name is taken.
            UsageError: it is no algorithm, backbone or data set.
        """
        extended = Registry(
            dict(self.algorithms),
            dict(self.backbones),
            dict(self.datasets),
            dict(self.suites),
            list(self.plugins),
        )
        for cls in classes:
            entry = make_entry(_kind_of(cls), cls, "", f"the class {_path(cls)}")
            if refusal := extended.add(entry):
                raise PluginError(f"{entry.owner}: {refusal}", "give it another name")
        return extended


def make_entry(kind: Kind, item: object, plugin: str, owner: str) -> Entry:
    """Check what a hook returned, and make an entry of it.

    Raises:
        PluginError: it is not of that kind, or its facts are missing or impossible.
    """
    if kind == "suite":
        return _suite_entry(item, plugin, owner)
    if isinstance(item, Lazy):
        what = f"Lazy({item.name!r})"
        source: type | str = item.target
        if not isinstance(source, str) or not _TARGET.fullmatch(source):
            raise PluginError(f"{what} has the target {source!r}, not 'package.module:Class'")
    elif isinstance(item, type):
        what = _path(item)
        source = item
        _check_class(kind, item, what)
    else:
        raise PluginError(f"{item!r} is neither a class nor a metabench.Lazy")
    facts = facts_of(item)
    _check_facts(kind, facts, what)
    return Entry(kind=kind, plugin=plugin, owner=owner, source=source, **facts)


def facts_of(item: object) -> dict[str, Any]:
    """What a class, a `Lazy` or an entry states: its name and `FACTS`."""
    name = item.plain_name if isinstance(item, Entry) else getattr(item, "name", "")
    return {"name": name, **{fact: getattr(item, fact, "") or "" for fact in FACTS}}


def _suite_entry(item: object, plugin: str, owner: str) -> Entry:
    if not isinstance(item, Path):
        raise PluginError(f"a suite is registered by the Path of its file, not by {item!r}")
    _check_name(item.stem, f"the suite file {item}")
    if not item.is_file():
        raise PluginError(f"the suite file {item} does not exist")
    return Entry(item.stem, "suite", plugin, owner, item, summary=_suite_summary(item))


def _suite_summary(file: Path) -> str:
    """The file's key `summary`; what else is wrong with it is told when somebody uses it."""
    try:
        summary = tomllib.loads(file.read_text(encoding="utf-8")).get("summary", "")
    except (OSError, ValueError):
        return ""
    return summary if isinstance(summary, str) else ""


def base_of(kind: Kind) -> type | None:
    """The class that plugins of a kind subclass; None: suites, or nobody has imported it yet."""
    module, name = _BASES.get(kind, ("", ""))
    base: type | None = getattr(sys.modules.get(module), name, None)
    return base


def _check_class(kind: Kind, item: object, what: str) -> None:
    """It must be a complete subclass; asks for no import, a subclass has imported its base."""
    base = base_of(kind)
    if base is None or not (isinstance(item, type) and issubclass(item, base)):
        raise PluginError(f"{what} is not a subclass of metabench.{_BASES[kind][1]}")
    missing = sorted(getattr(item, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"{what} does not implement {', '.join(missing)}")
    argument = getattr(item, "argument", "")
    fields = getattr(item, "hyperparameters").model_fields if argument else ()  # noqa: B009
    if kind == "backbone" and argument and argument not in fields:
        raise PluginError(f"{what} has no hyper-parameter {argument!r}, its argument")


def _check_facts(kind: Kind, facts: Mapping[str, object], what: str) -> None:
    required = ("name", "family", "reference", "summary")
    missing = [f for f in required if not (isinstance(facts[f], str) and str(facts[f]).strip())]
    if missing:
        raise PluginError(f"{what} does not state its {', '.join(missing)}")
    _check_name(str(facts["name"]), what)
    modes = ("inductive", "transductive") if kind == "algorithm" else ("",)
    if facts["inference"] not in modes:
        raise PluginError(
            f"{what} states the inference mode {facts['inference']!r}; possible:"
            f" {' or '.join(map(repr, modes))}"
        )
    if facts["argument"] and kind != "backbone":
        raise PluginError(f"{what} states an argument, which only a backbone's name can have")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise PluginError(
            f"{what} has the name {name!r}; a name is up to 64 of a-z, 0-9, '-', '_' and '+',"
            " and starts with a letter or digit"
        )


def _kind_of(cls: object) -> Kind:
    for kind in _BASES:
        base = base_of(kind)
        if base is not None and isinstance(cls, type) and issubclass(cls, base):
            return kind
    raise UsageError(
        f"{cls!r} is not a class of an algorithm, backbone or data set",
        "subclass metabench.Algorithm, metabench.Backbone or metabench.Dataset",
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
