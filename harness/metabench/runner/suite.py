"""Suite files: named sets of cells, written in TOML. This docstring is their reference.

    summary = "one line for `metabench list suites`"
    seeds = 3                       # training seeds 0, 1, 2; or a list, [0, 7]

    [recipe]                        # training settings of every algorithm here
    validation_episodes = 200

    [recipes.supervised]            # a recipe that several algorithms share, by name
    steps = 4000
    batch_size = 64

    [[dataset]]                     # one or more
    name = "quickdraw"
    label = "..."                   # what tables print; default: the name, and what is set here
    hyperparameters = {}            # the data set's own settings

    [[protocol]]                    # one or more; how rows are *evaluated*
    ways = 5
    shots = 1
    queries = 15                    # a class
    episodes = 1000                 # test episodes
    episode_seed = 0
    class_split = "default"         # default: the data set's first
    image_size = 28                 # default: as it is
    rotation = "none"               # or "classes", "episode"
    dirichlet = 2                   # queries in random proportions; default: as many of each class
    metric = "accuracy"

    [[backbone]]                    # one or more
    name = "conv4"                  # or "torchvision:resnet18", a name with an argument
    label = "conv4-32"              # default: the name, and what is set here
    hyperparameters = {width = 32, downsample = "stride"}

    [[algorithm]]                   # one or more; one algorithm may stand here several times
    name = "maml"
    variant = "..."                 # default: the hyper-parameters that differ from the plugin's
    backbones = ["conv4-*"]         # labels or shell patterns of labels; default: all
    hyperparameters = {inner_lr = 0.4, inner_steps = 3}
    recipe = {steps = 800, meta_batch = 2}

    [algorithm.protocols."5w5s"]    # laid on top under the protocols that match: a shell pattern
    hyperparameters = {inner_steps = 1}        # of a name such as 5w5s15q, or of its first half
    recipe = {steps = 460}

Every cell is dataset x protocol x algorithm x backbone x seed. A recipe is merged from, each laid
over the ones before: the algorithm's own default, `[recipe]`, the algorithm's `recipe`, its
`protocols` tables in the order of the file. `recipe = "supervised"`, or
`recipe = {base = "supervised", ...}`, puts `[recipes.supervised]` between `[recipe]` and the
algorithm's own settings, and leaves the algorithm's default out: algorithms with one base train
alike, and share what they train where they can. The string "none" stands for an empty value
(`ways = "none"`: the protocol's). The keys of a recipe are those of `metabench.Recipe`; the
hyper-parameters of a plugin are listed by `metabench show NAME`.

A suite is called as its file is, without `.toml`, and so is its table: no file may have the name of
a suite that a plugin registers. A suite names registered plugins and never imports anything. Two
protocols of a suite differ in ways, shots or queries; what differs in another respect (a class
split) belongs in another suite.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol
from metabench.errors import UsageError, unknown_name
from metabench.registry import ARGUMENT, Registry
from metabench.runner.checked import check_keys_and_values, checked, shown_settings, unknown_key
from metabench.runner.patterns import any_match, escaped, protocol_matches

LARGEST_FILE = 1 << 20
"""Bytes; a suite is written by a person, and anybody's may be tried."""
MOST_SEEDS = 1000
BASE = "base"
"""The key of an algorithm's recipe that names one of the suite's recipes."""

Settings = dict[str, Any]
Name = Annotated[str, Field(min_length=1, description="the name of a registered plugin")]
T = TypeVar("T")
_LABEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+=,-]*)?")
_TOML_ERROR = re.compile(
    r"(?P<what>.+) \(at (line (?P<line>\d+), column (?P<column>\d+)|end of document)\)",
    re.DOTALL,
)


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(
            "it may have letters, digits and _ . + = , - in it, and begins with a letter or digit"
            " (it stands in the names of cells)"
        )
    return text


Label = Annotated[str, Field(max_length=80), AfterValidator(_label)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginEntry(_Entry):
    """A `[[dataset]]` or `[[backbone]]`: a plugin, its settings, and what tables call it."""

    name: Name
    label: Label = ""
    hyperparameters: Settings = {}

    @property
    def plugin(self) -> str:
        """The plugin's name: that of `torchvision:resnet18` is torchvision."""
        return self.name.partition(ARGUMENT)[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All that it can be called by."""
        return self.label, self.name, self.plugin


class Layer(_Entry):
    """Settings of an algorithm, or of an algorithm under some protocols."""

    hyperparameters: Settings = {}
    recipe: Settings = {}


class AlgorithmEntry(Layer):
    """An `[[algorithm]]`.

    Attributes:
        variant: the label; "" says plain whatever is set; None: made from the settings.
        backbones: patterns of backbone labels.
        protocols: settings to lay on top, by pattern of protocol names.
    """

    name: Name
    variant: Label | None = None
    backbones: tuple[str, ...] = ("*",)
    protocols: dict[str, Layer] = {}

    def layers(self, protocol: str) -> list[Layer]:
        """The settings under the protocol of that name, those to be laid on top last."""
        over = (o for p, o in self.protocols.items() if protocol_matches(p, protocol))
        return [self, *over]


class Suite(_Entry):
    """A suite as its file has it; plugins are not looked up yet.

    Attributes:
        name: the file's stem.
        source: the file, for messages.
    """

    name: str
    source: str
    summary: str
    seeds: tuple[int, ...]
    recipe: Settings
    recipes: dict[str, Settings]
    datasets: tuple[PluginEntry, ...]
    protocols: tuple[Protocol, ...]
    backbones: tuple[PluginEntry, ...]
    algorithms: tuple[AlgorithmEntry, ...]

    def with_algorithms(self, names: Iterable[str]) -> Suite:
        """The same suite with those of these algorithms that it lacks.

        They come as their plugins have them by default, and on the suite's first backbone.
        """
        there = {entry.name for entry in self.algorithms}
        first = (escaped(self.backbones[0].label),)
        new = tuple(
            AlgorithmEntry(name=name, backbones=first) for name in names if name not in there
        )
        return self.model_copy(update={"algorithms": self.algorithms + new})


def open_suite(name: str, registry: Registry) -> Suite:
    """The suite of a registered name, or of a TOML file's path.

    Raises:
        UsageError: there is none, something is wrong in it, or a file has the name of a
            registered suite.
    """
    if name not in registry.suites and is_path(name):
        path = Path(name)
        _check_own_name(path, registry)
        return load_suite(path)
    return load_suite(registry.get("suite", name).load())


def _check_own_name(path: Path, registry: Registry) -> None:
    """Raise UsageError for a file with the name of a registered suite: tables are named by it."""
    entry = registry.suites.get(path.stem)
    if entry is None or path.resolve() == entry.load().resolve():
        return
    if path.is_file():
        raise UsageError(
            f"the suite file {path} has the name of suite {path.stem!r} of {entry.owner}",
            f"rename the file, such as to my-{path.name}: its table is named after it",
        )


def is_path(name: str) -> bool:
    """Whether it looks like a suite file's path; a registered name may look so too."""
    return name.endswith(".toml") or "/" in name or "\\" in name


def load_suite(path: Path) -> Suite:
    """Read and check a suite file, all but the settings of plugins, which need the plugins.

    Raises:
        UsageError: file, key and what is wrong, with the nearest known name.
    """
    table, source = read_toml(path), str(path)
    known = {"summary", "seeds", "recipe", "recipes", *_LISTS}
    for key in table:
        if key not in known:
            raise unknown_key(source, key, known)
    if not isinstance(table.get("summary"), str):
        raise UsageError(f"{source}: summary should be one line of text", 'summary = "..."')
    suite = Suite(
        name=path.stem,
        source=source,
        summary=table["summary"],
        seeds=_seeds(table.get("seeds", 1), source),
        recipe=_recipe(table.get("recipe", {}), f"{source}, [recipe]"),
        recipes=_recipes(table.get("recipes", {}), source),
        datasets=_entries(table, "dataset", source, _plugin),
        protocols=_entries(table, "protocol", source, lambda t, at: checked(Protocol, t, at)),
        backbones=_entries(table, "backbone", source, _plugin),
        algorithms=_entries(table, "algorithm", source, _algorithm),
    )
    _check_names(suite)
    return suite


_LISTS = ("dataset", "protocol", "backbone", "algorithm")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a suite file.

    Raises:
        UsageError: it is not there, cannot be read, is too large, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(
            f"the suite file {path} cannot be read: {error.strerror or error}",
            "give the path of a TOML file, or a name from `metabench list suites`",
        ) from None
    if len(content) > LARGEST_FILE:
        raise UsageError(f"{path} is over {LARGEST_FILE} bytes: no suite file is that large")
    try:
        return tomllib.loads(content.decode() + "\n")  # or the last line would have no number
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "a suite is a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(path, content.decode(), str(error)) from None


def _no_toml(path: Path, text: str, told: str) -> UsageError:
    """The error for a file that is no TOML: at which line and column, and what is wrong there."""
    match = _TOML_ERROR.fullmatch(told)
    if match is None:
        return UsageError(f"{path} is not valid TOML: {told}", "mend it, or give another file")
    what = match["what"][0].lower() + match["what"][1:]
    if match["line"]:
        return UsageError(
            f"{path}, line {match['line']}, column {match['column']}: {what}",
            "mend that line: a suite is a TOML file",
        )
    last = len(text.splitlines())
    return UsageError(
        f"{path} ends in line {last} within something that was begun: {what}",
        "close it, there or further up: a suite is a TOML file",
    )


def _seeds(value: object, source: str) -> tuple[int, ...]:
    seeds = range(value) if type(value) is int and 1 <= value <= MOST_SEEDS else value
    if not isinstance(seeds, range | list) or not 1 <= len(seeds) <= MOST_SEEDS:
        raise UsageError(
            f"{source}: seeds = {value!r} should be a number from 1 to {MOST_SEEDS}, or a list",
            "seeds = 3, or seeds = [0, 1, 2]",
        )
    if len(set(seeds)) < len(seeds) or any(type(s) is not int or not 0 <= s < 2**63 for s in seeds):
        raise UsageError(
            f"{source}: seeds = {value!r} should be different whole numbers from 0 and below 2**63",
            "seeds = 3, or seeds = [0, 1, 2]",
        )
    return tuple(seeds)


def _entries(
    table: Mapping[str, Any], key: str, source: str, read: Callable[[Settings, str], T]
) -> tuple[T, ...]:
    entries = table.get(key)
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(e, dict) for e in entries)
    ):
        raise UsageError(f"{source}: a suite needs one [[{key}]] or more", f"write [[{key}]]")
    return tuple(read(e, place(source, key, i, e.get("name"))) for i, e in enumerate(entries, 1))


def place(source: str, key: str, number: int, name: object) -> str:
    """`my.toml, [[algorithm]] 3 (maml)`; without the last where the name is no text."""
    return f"{source}, [[{key}]] {number}" + (f" ({name})" if isinstance(name, str) else "")


def _plugin(table: Settings, where: str) -> PluginEntry:
    entry = checked(PluginEntry, table, where)
    made = ",".join(filter(None, [entry.name, shown_settings(entry.hyperparameters)]))
    return entry.model_copy(update={"label": entry.label or made})


def _algorithm(table: Settings, where: str) -> AlgorithmEntry:
    table = _with_recipe_table(table, where)
    overrides = table.pop("protocols", {})
    if not isinstance(overrides, dict) or not all(isinstance(o, dict) for o in overrides.values()):
        raise UsageError(f"{where}: protocols should be tables, one a pattern of protocol names")
    read = {
        pattern: checked(Layer, _with_recipe_table(over, at), at)
        for pattern, over in overrides.items()
        for at in [f"{where}, protocols.{pattern}"]
    }
    return checked(AlgorithmEntry, table, where).model_copy(update={"protocols": read})


def _with_recipe_table(table: Settings, where: str) -> Settings:
    """A copy whose recipe is a checked table, also where only the name of a base was given."""
    recipe = table.get("recipe", {})
    if isinstance(recipe, str):
        recipe = {BASE: recipe}
    if isinstance(recipe, dict):
        _recipe({k: v for k, v in recipe.items() if k != BASE}, f"{where}, recipe")
    return {**table, "recipe": recipe}


def _recipe(table: object, where: str) -> Settings:
    if not isinstance(table, dict):
        raise UsageError(f"{where} should be a table of training settings", "{steps = 1000}")
    check_keys_and_values(Recipe, table, where)
    return table


def _recipes(table: object, source: str) -> dict[str, Settings]:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: recipes should be tables, one a name", "[recipes.NAME]")
    return {name: _recipe(recipe, f"{source}, [recipes.{name}]") for name, recipe in table.items()}


def _check_names(suite: Suite) -> None:
    """Raise UsageError unless names within the suite are distinct and lead somewhere."""
    labels = [b.label for b in suite.backbones]
    protocols = [p.name for p in suite.protocols]
    _check_distinct(suite.source, "dataset", [d.label for d in suite.datasets])
    _check_distinct(suite.source, "backbone", labels)
    _check_distinct(suite.source, "protocol", protocols)
    for number, entry in enumerate(suite.algorithms, 1):
        where = place(suite.source, "algorithm", number, entry.name)
        for pattern in entry.backbones:
            if not any_match([pattern], labels):
                raise _nothing(f"{where}, backbones", "backbone", pattern, labels)
        for pattern in entry.protocols:
            if not any(protocol_matches(pattern, name) for name in protocols):
                raise _nothing(f"{where}, protocols", "protocol", pattern, protocols)
        for over in [entry, *entry.protocols.values()]:
            base = over.recipe.get(BASE)
            if base is not None and (not isinstance(base, str) or base not in suite.recipes):
                raise _nothing(f"{where}, recipe", "recipe", str(base), suite.recipes)


def _nothing(where: str, kind: str, name: str, known: Iterable[str]) -> UsageError:
    error = unknown_name(kind, name, known)
    return UsageError(f"{where}: {error.message} in this suite", error.hint)


def _check_distinct(source: str, kind: str, labels: list[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            hint = "put them into two suites" if kind == "protocol" else "give one of them a label"
            raise UsageError(f"{source}: two [[{kind}]] are called {label!r}", hint)
