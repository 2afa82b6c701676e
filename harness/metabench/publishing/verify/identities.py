"""What the cells of a row are: their protocol, recipe, plugins and seeds, and what they are called.

A plugin's name is looked up among those installed here, never imported from what it says.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from metabench.api.recipe import Recipe
from metabench.episodes.digest import digest
from metabench.episodes.protocol import Protocol
from metabench.errors import EvidenceError, MetabenchError
from metabench.leaderboard.commands import published_command
from metabench.publishing.verify.reading import RowOf
from metabench.publishing.verify.report import CannotCheckError, Report, require
from metabench.registry import ARGUMENT, Registry
from metabench.rendering import plain
from metabench.runner.cells import Choice
from metabench.runner.checked import shown
from metabench.runner.patterns import escaped
from metabench.runner.resolve import PluginKind, load_choice
from metabench.store.keys import CellIdentity

M = TypeVar("M", bound=BaseModel)

_PLUGIN = re.compile(r"[a-z0-9][a-z0-9+_-]{0,63}(:[\w.+/-]{1,128})?")
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_OF_CALL = {"algorithms", "backbones", "datasets", "protocols", "exclude", "seeds", "settings"} | {
    *("precision", "engine", "device")
}
"""What a call of `metabench.run` that is published may set: no folder, and nothing of workers."""
_MARKUP = re.compile(r"[<>`]|\[/?[A-Za-z#@/]|\]\(")
_FORMULA = ("=", "+", "-", "@")


def check_identities(row: RowOf, registry: Registry, report: Report) -> None:
    """Findings on what the cells of a row are."""
    report.check("names are plain", row.what, lambda: _plain_names(row))
    report.check("command", row.what, lambda: _command(row))
    if not row.proofs:
        return
    report.check("seeds", row.what, lambda: _seeds(row))
    report.check("protocol", row.what, lambda: _protocol(row))
    report.check("recipe", row.what, lambda: _recipe(row))
    report.check("names", row.what, lambda: _names(row, registry))
    report.check("settings", row.what, lambda: _settings(row, registry))


def protocol_of(identity: CellIdentity) -> Protocol:
    """A record's protocol, valid; EvidenceError where it's none."""
    protocol = _strictly(Protocol, identity.protocol, "protocol")
    require(protocol.identity == identity.protocol, "its protocol isn't written as one is")
    return protocol


def recipe_of(identity: CellIdentity) -> Recipe:
    """A record's recipe, valid; EvidenceError where it's none."""
    recipe = _strictly(Recipe, identity.recipe, "recipe")
    require(recipe.identity == identity.recipe, "its recipe isn't written as one is")
    return recipe


def choice_of(identity: CellIdentity, kind: PluginKind, label: str) -> Choice:
    """A record's plugin with its settings."""
    part = getattr(identity, kind)
    return Choice(name=part.name, label=label, hyperparameters=part.hp)


def _strictly(model: type[M], table: Mapping[str, Any], what: str) -> M:
    try:
        return model.model_validate_json(json.dumps(table), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EvidenceError(f"its {what} is none: {where}: {first['msg']}") from error


def _plain_names(row: RowOf) -> None:
    """Nothing in a name that a terminal, a page or a spreadsheet would take for more than text."""
    labels = row.row.labels
    texts = [labels.dataset, labels.protocol, labels.algorithm, labels.variant, labels.backbone]
    for text in texts:
        odd = plain(text) != text or _MARKUP.search(text) or text.startswith(_FORMULA)
        require(not odd, f"{plain(text)!r} holds markup, a formula or what can't be seen")
    for proof in row.proofs:
        identity = proof.record.identity
        for kind in ("algorithm", "backbone", "dataset"):
            name = getattr(identity, kind).name
            require(bool(_PLUGIN.fullmatch(name)), f"{plain(name)!r} is no name of a plugin")
        device = identity.numerics.device
        require(device in _DEVICES, f"{plain(device)!r} is no type of device")


def _command(row: RowOf) -> None:
    """The line that runs it again is one, and of this row."""
    noted, labels = row.row.command, row.row.labels
    require(published_command(noted) == noted, "it is no line that runs metabench")
    if not noted:
        raise CannotCheckError("no line that runs it again was noted")
    if not noted.startswith("metabench run "):
        _call(noted, row.suite)
        return
    words = shlex.split(noted)[2:]
    require(len(words) % 2 == 0, "an option of it has no value")
    options = list(zip(words[::2], words[1::2], strict=True))
    known = dict(option for option in options if option[0] != "--set")
    require(len(known) == sum(name != "--set" for name, _ in options), "it says something twice")
    algorithm, _, variant = known.get("--algorithm", "").partition("/")
    allowed = {"--suite", "--dataset", "--protocol", "--algorithm", "--backbone", "--seed"}
    right = {
        "--suite": known.get("--suite") in (row.suite, f"{row.suite}.toml"),
        "--dataset": known.get("--dataset") == escaped(labels.dataset),
        "--algorithm": algorithm == labels.algorithm
        and escaped(labels.variant).startswith(variant),
        "--backbone": known.get("--backbone") == escaped(labels.backbone),
        "--seed": known.get("--seed") in row.row.cells,
        "options": set(known) <= allowed,
        "--protocol": known.get("--protocol") == labels.protocol
        or any(name == "--set" for name, _ in options),
    }
    for what, holds in right.items():
        require(holds, f"its {what} is not that of the row")


def _call(noted: str, suite: str) -> None:
    """A call of `metabench.run` on the row's suite, which only chooses what of it is run."""
    call = ast.parse(noted, mode="eval").body
    assert isinstance(call, ast.Call)  # or `published_command` would not have passed it on
    places = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    right = len(places) == len(call.args) == 1 and places[0] in (suite, f"{suite}.toml")
    require(right, "its suite is not that of the row")
    names = [keyword.arg for keyword in call.keywords]
    odd = [str(name) for name in names if name not in _OF_CALL]
    require(not odd, f"it sets {', '.join(odd)}")
    require(len(set(names)) == len(names), "it says something twice")


def _seeds(row: RowOf) -> None:
    """Each cell has the seed under which it stands, and nothing else differs."""
    by_key = {proof.record.key: proof.record for proof in row.proofs}
    for seed, key in row.row.cells.items():
        if key in by_key:
            own = by_key[key].identity.seed
            require(own == int(seed), f"its cell of seed {seed} was trained with seed {own}")
    first = row.proofs[0].record.identity
    for proof in row.proofs[1:]:
        lines = first.explain_difference(proof.record.identity)
        odd = [line for line in lines if not line.startswith("seed:")]
        require(not odd, f"its cells differ in more than the seed: {'; '.join(odd[:3])}")


def _protocol(row: RowOf) -> None:
    labels = row.row.labels
    for proof in row.proofs:
        protocol = protocol_of(proof.record.identity)
        same = protocol.digest == labels.protocol_digest
        require(same, f"its cells are of protocol {protocol.short_digest}, not of the row's")
        require(protocol.name == labels.protocol, f"its protocol is {protocol.name}")
        require(protocol.metric == labels.metric, f"its metric is {protocol.metric}")
        found, asked = proof.episodes.targets.shape
        require(
            found == protocol.episodes,
            f"it has {found} test episodes, its protocol {protocol.episodes}",
        )
        expected = protocol.ways * protocol.queries
        require(asked == expected, f"its episodes have {asked} queries, its protocol {expected}")


def _recipe(row: RowOf) -> None:
    for proof in row.proofs:
        recipe_of(proof.record.identity)


def _names(row: RowOf, registry: Registry) -> None:
    """The row is called as its records are.

    A backbone and a data set may have a label of their own, but not the name of another one.
    """
    labels = row.row.labels
    for proof in row.proofs:
        identity = proof.record.identity
        own = identity.algorithm.name
        require(own == labels.algorithm, f"its records are of algorithm {own}")
        kinds: tuple[tuple[PluginKind, str], ...] = (
            ("backbone", labels.backbone),
            ("dataset", labels.dataset),
        )
        for kind, label in kinds:
            name = getattr(identity, kind).name
            other = _named_in(label, registry.of(kind))
            right = other in (None, *name.split(ARGUMENT)) or label.startswith(name)
            require(right, f"its {kind} is called {label}, its records are of {name}")
        _variant(labels.variant, identity)


def _named_in(label: str, known: Mapping[str, object]) -> str | None:
    """The registered name that a label begins with, the longest."""
    word = re.split(r"[\s:(,=]", label, maxsplit=1)[0]
    parts = word.split("-")
    starts = ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((start for start in starts if start in known), None)


def _variant(variant: str, identity: CellIdentity) -> None:
    """Settings in a variant's name are those of the record."""
    for part in variant.split(","):
        key, equals, value = part.partition("=")
        if equals and key in identity.algorithm.hp:
            own = shown(identity.algorithm.hp[key])
            right = own == value or "," in own
            require(right, f"it is called {part}, its records have {key}={own}")


def _settings(row: RowOf, registry: Registry) -> None:
    """The plugins are known here, and take the settings."""
    identity = row.proofs[0].record.identity
    kinds: tuple[PluginKind, ...] = ("algorithm", "backbone", "dataset")
    for kind in kinds:
        choice = choice_of(identity, kind, "")
        if registry.find(kind, choice.name) is None:
            raise CannotCheckError(f"no {kind} called {choice.name} is installed here")
        try:
            cls, hp = load_choice(registry, kind, choice)
        except MetabenchError as error:
            raise CannotCheckError(
                f"{kind} {choice.name} of the version here: {error.message}"
            ) from error
        same = digest(hp.model_dump(mode="json")) == digest(choice.hyperparameters)
        if not same:
            raise CannotCheckError(f"{kind} {choice.name} of the version here has other settings")
        if kind == "algorithm":
            _inference(row, cls.inference_mode(hp))


def _inference(row: RowOf, declared: str) -> None:
    """One that knows of all queries says so; one found to be so may have declared otherwise."""
    for proof in row.proofs:
        right = declared != "transductive" or proof.record.inference == declared
        require(right, f"under these settings it is {declared}, its record says otherwise")
