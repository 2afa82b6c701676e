"""From the entries of a suite to a cell: plugins looked up, settings merged, checked and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from metabench.api.recipe import Hyperparameters, Recipe
from metabench.episodes.protocol import Protocol, Rotation
from metabench.errors import UsageError, unknown_name
from metabench.registry import ARGUMENT, Entry, Registry
from metabench.runner.cells import Cell, Choice
from metabench.runner.checked import checked, shown_settings
from metabench.runner.overrides import Override
from metabench.runner.suite import BASE, AlgorithmEntry, PluginEntry, Suite, place

PluginKind = Literal["algorithm", "backbone", "dataset"]


class Combination(NamedTuple):
    """Entries of a suite that make a cell, but for the seed.

    Attributes:
        written: the protocol as the suite has it.
        protocol: the same after `--set`.
    """

    dataset: PluginEntry
    written: Protocol
    protocol: Protocol
    algorithm: AlgorithmEntry
    backbone: PluginEntry


class Settled(NamedTuple):
    """Settings, merged and checked.

    Attributes:
        value: with `--set`.
        written: as the suite has them.
        used: the overrides that made the difference.
    """

    value: BaseModel
    written: BaseModel
    used: tuple[Override, ...]

    @property
    def dump(self) -> dict[str, Any]:
        return self.value.model_dump(mode="json")

    @property
    def changed(self) -> dict[str, Any]:
        """What `--set` changed."""
        return differences(self.value, self.written)


class Resolved(NamedTuple):
    """A cell with seed 0 and no arguments.

    Attributes:
        cell: the cell.
        variant: its variant before `--set`, by which filters know it.
        used: the overrides that apply to it.
    """

    cell: Cell
    variant: str
    used: tuple[Override, ...]


def load_choice(
    registry: Registry, kind: PluginKind, choice: Choice
) -> tuple[type[Any], Hyperparameters]:
    """The class of a cell's plugin, and its hyper-parameters as the class has them typed."""
    entry = registry.get(kind, choice.name)
    return entry.load(), settings_of(entry, choice.hyperparameters, f"{kind} {choice.name}")


def settings_of(
    entry: Entry, table: Mapping[str, Any] = MappingProxyType({}), where: str = ""
) -> Hyperparameters:
    """The hyper-parameters of a plugin: its defaults, what its name sets, and a table on top.

    Raises:
        UsageError: an unknown key, or a value that is not allowed.
    """
    where = where or f"{entry.kind} {entry.name}"
    model: type[Hyperparameters] = entry.load().hyperparameters
    return checked(model, _with_argument(entry, table, where), where)


def _with_argument(entry: Entry, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table of hyper-parameters, and the one that `NAME:VALUE` sets."""
    for key, value in entry.settings.items():
        if table.get(key, value) != value:
            raise UsageError(
                f"{where}: {key} is {value!r} by the name {entry.name}, and {table[key]!r} here",
                f"say it once: name = {entry.plain_name + ARGUMENT + str(table[key])!r}",
            )
    return {**entry.settings, **table}


def resolve(
    suite: Suite, registry: Registry, at: Combination, overrides: Sequence[Override]
) -> Resolved:
    """The cell of a combination.

    Raises:
        UsageError: an unknown plugin or key, a value that is not allowed, a class split that the
            data set does not have, rotations of data that cannot be turned.
    """
    entry = at.algorithm
    dataset = settle_plugin(suite, registry, "dataset", at.dataset, overrides)
    backbone = settle_plugin(suite, registry, "backbone", at.backbone, overrides)
    cls = _entry(suite, registry, "algorithm", entry.name).load()
    where = f"{suite.source}, {entry.name}"
    table = _merged(layer.hyperparameters for layer in entry.layers(at.written.name))
    default = cls.hyperparameters()
    variant = entry.variant
    if variant is None:
        written = checked(cls.hyperparameters, table, f"{where}, hyperparameters")
        variant = shown_settings(differences(written, default))
    mine = [o for o in overrides if o.is_for_algorithm(entry.name, variant)]
    own = settle(
        cls.hyperparameters, table, [o for o in mine if not o.recipe], f"{where}, hyperparameters"
    )
    recipe = settle(
        Recipe,
        _recipe_table(suite, cls.recipe, entry, at.written.name),
        [o for o in mine if o.recipe],
        f"{where}, recipe",
    )
    parts = {"recipe": recipe, "backbone": backbone, "dataset": dataset}
    cell = Cell(
        suite=suite.name,
        dataset=_choice(at.dataset, dataset),
        protocol=_on_dataset(suite, registry, at, recipe),
        algorithm=Choice(name=entry.name, label=entry.name, hyperparameters=own.dump),
        variant=_variant(entry, own, default, parts),
        backbone=_choice(at.backbone, backbone),
        inference=cls.inference_mode(own.value),
        recipe=recipe.value,
        seed=0,
    )
    used = [o for part in (own, *parts.values()) for o in part.used]
    applied = tuple(o for o in overrides if o in used or o.kind == "protocol")
    return Resolved(cell, variant, applied)


def settle(
    model: type[BaseModel], table: Mapping[str, Any], overrides: Iterable[Override], where: str
) -> Settled:
    """Check a table, then the same with those overrides laid on top whose key the model has."""
    written = checked(model, table, where)
    used = tuple(o for o in overrides if o.key in model.model_fields)
    if not used:
        return Settled(written, written, ())
    changed = {**table, **{o.key: o.value for o in used}}
    return Settled(checked(model, changed, f"--set {used[-1].text}"), written, used)


def settle_plugin(
    suite: Suite,
    registry: Registry,
    kind: Literal["backbone", "dataset"],
    entry: PluginEntry,
    overrides: Iterable[Override],
) -> Settled:
    """The settings of a backbone or data set."""
    plugin = _entry(suite, registry, kind, entry.name)
    mine = [o for o in overrides if o.is_for_plugin(kind, *entry.names)]
    where = f"{suite.source}, {entry.label}, hyperparameters"
    table = _with_argument(plugin, entry.hyperparameters, where)
    return settle(plugin.load().hyperparameters, table, mine, where)


def differences(value: BaseModel, other: BaseModel) -> dict[str, Any]:
    """The fields, as JSON, in which `value` differs from `other`, of the same model."""
    fields, others = value.model_dump(mode="json"), other.model_dump(mode="json")
    return {key: item for key, item in fields.items() if item != others[key]}


def _entry(suite: Suite, registry: Registry, kind: PluginKind, name: str) -> Entry:
    try:
        return registry.get(kind, name)
    except UsageError as error:
        entries: dict[str, Sequence[AlgorithmEntry | PluginEntry]] = {
            "algorithm": suite.algorithms,
            "backbone": suite.backbones,
            "dataset": suite.datasets,
        }
        number = 1 + [entry.name for entry in entries[kind]].index(name)
        where = place(suite.source, kind, number, name)
        raise type(error)(f"{where}: {error.message}", error.hint) from None


def _merged(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for table in tables for key, value in table.items()}


def _choice(entry: PluginEntry, settled: Settled) -> Choice:
    return Choice(name=entry.plugin, label=entry.label, hyperparameters=settled.dump)


def _recipe_table(
    suite: Suite, default: Recipe, entry: AlgorithmEntry, protocol: str
) -> dict[str, Any]:
    """The layers of a recipe, one over the other, in the order that the suite module states."""
    own = _merged(layer.recipe for layer in entry.layers(protocol))
    base = own.pop(BASE, None)
    start = default.model_dump(mode="json") if base is None else {}
    return _merged([start, suite.recipe, suite.recipes[base] if base is not None else {}, own])


def _on_dataset(suite: Suite, registry: Registry, at: Combination, recipe: Settled) -> Protocol:
    """The protocol with the data set's own class split, and that checked."""
    cls, protocol = _entry(suite, registry, "dataset", at.dataset.name).load(), at.protocol
    if protocol.class_split == "default":
        protocol = protocol.model_copy(update={"class_split": cls.class_splits[0]})
    if protocol.class_split not in cls.class_splits:
        error = unknown_name("class split", protocol.class_split, cls.class_splits)
        raise UsageError(f"{suite.source}, {at.dataset.label}: {error.message}", error.hint)
    turned = protocol.rotation is not Rotation.NONE or recipe.dump["augmentation"] != "none"
    if turned and not cls.rotations:
        raise UsageError(
            f"{suite.source}: {at.algorithm.name} under {protocol.name} turns items by quarter "
            f"turns, which those of data set {at.dataset.label} do not admit",
            'set rotation (of the protocol) and augmentation (of the recipe) to "none"',
        )
    return protocol


def _variant(
    entry: AlgorithmEntry, own: Settled, default: BaseModel, parts: Mapping[str, Settled]
) -> str:
    """The suite's label, or what differs from the defaults; behind it what `--set` changed."""
    shown = dict(own.changed)
    if entry.variant is None:
        shown |= differences(own.value, default)
    for part, settled in parts.items():
        shown |= {f"{part}.{key}": value for key, value in settled.changed.items()}
    return ",".join(filter(None, [entry.variant, shown_settings(shown)]))
