"""Pages on what is registered: an algorithm, a backbone, a data set, a suite."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.cli.page import Page, Table, Text, facts
from metabench.cli.sizes import size_text
from metabench.registry import Entry, Registry
from metabench.rendering import Row

if TYPE_CHECKING:
    from pydantic import BaseModel

    from metabench.api.dataset import Dataset
    from metabench.runner.suite import Suite

SETTINGS = ("name", "default", "values", "meaning")
RECIPE = ("name", "value", "values", "meaning")
MATRIX = (
    "dataset",
    "protocol",
    "algorithm",
    "variant",
    "backbone",
    "inference",
    "steps",
    "recipe_digest",
    "seeds",
)


def plugin_page(entry: Entry, data_dir: Path) -> Page:
    """The page on an algorithm, a backbone or a data set.

    Raises:
        PluginError: it can't be imported.
        UsageError: its name has an argument that isn't possible.
    """
    from metabench.runner.resolve import settings_of

    cls: Any = entry.load()
    hyperparameters = settings_of(entry)
    table: dict[str, object] = {
        "kind": entry.kind,
        "name": entry.name,
        "summary": cls.summary,
        "family": cls.family,
        "reference": cls.reference,
        "version": cls.version,
        "plugin": entry.owner.removeprefix("plugin "),
    }
    if entry.kind == "algorithm":
        table |= _algorithm_facts(cls)
    if entry.kind == "dataset":
        table |= _dataset_facts(cls, data_dir)
    page = Page(f"{entry.kind} {entry.name}", dict(table))
    page.add("", facts(_in_words(table)))
    _add_texts(page, cls)
    page.data["hyperparameters"] = settings_data(hyperparameters)
    page.add("hyper-parameters", Table(settings_table(hyperparameters), SETTINGS))
    if entry.kind == "algorithm":
        recipe = [{**row, "value": row["default"]} for row in settings_table(cls.recipe)]
        page.data["recipe"] = cls.recipe.model_dump(mode="json")
        page.add("default recipe (how it is trained)", Table(recipe, RECIPE))
    return page


def _in_words(table: Mapping[str, object]) -> dict[str, object]:
    """Facts as a page for people has them: lists with commas, sizes with units."""
    shown = {k: v for k, v in table.items() if k not in {"kind", "name"}}
    for name, value in shown.items():
        if isinstance(value, list):
            shown[name] = ", ".join(map(str, value))
        elif name == "size" and isinstance(value, int):
            shown[name] = size_text(value)
    return shown


def _algorithm_facts(cls: Any) -> dict[str, object]:
    return {
        "inference": cls.inference_mode(cls.hyperparameters()),
        "output": cls.output,
        "equivariant to": sorted(cls.equivariances(cls.hyperparameters())),
    }


def _dataset_facts(cls: type[Dataset], data_dir: Path) -> dict[str, object]:
    from metabench.data.catalogue import list_data

    [row] = list_data([cls], data_dir)
    return {
        "licence": cls.licence,
        "origin": cls.origin,
        "class splits": list(cls.class_splits),
        "state": row["state"],
        "size": int(row["bytes"]),
        "path": row["path"],
    }


def _add_texts(page: Page, cls: type) -> None:
    """The docstring, which tells the idea and the paper; a data set's card."""
    idea = inspect.cleandoc(cls.__doc__ or "")
    card = str(getattr(cls, "card", "")).strip()
    page.data |= {"idea": idea} | ({"card": card} if card else {})
    page.add("idea", Text(idea))
    page.add("card", Text(card))


def settings_data(settings: BaseModel) -> list[Row]:
    """For each field of a model as JSON has it: its value there, its JSON schema, its meaning."""
    schema = type(settings).model_json_schema()
    values = settings.model_dump(mode="json")
    return [
        {
            "name": name,
            "default": values[name],
            "schema": _bounds(schema["properties"][name], schema.get("$defs", {})),
            "meaning": field.description,
        }
        for name, field in type(settings).model_fields.items()
    ]


def _bounds(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with what it refers to in place, and without texts and the default."""
    if isinstance(schema, list):
        return [_bounds(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _bounds(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    texts = {"title", "description", "default"}
    return {k: _bounds(v, definitions) for k, v in schema.items() if k not in texts}


def settings_table(settings: BaseModel) -> list[Row]:
    """For each field of a model, in words: its value there, what it may be, what it means."""
    from metabench.runner.checked import shown

    schema = type(settings).model_json_schema()
    values = settings.model_dump(mode="json")
    return [
        {
            "name": name,
            "default": shown(values[name]),
            "values": possible_values(schema["properties"][name], schema.get("$defs", {})),
            "meaning": field.description,
        }
        for name, field in type(settings).model_fields.items()
    ]


_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters or fewer",
    "minItems": "{} or more of them",
    "maxItems": "{} or fewer of them",
    "pattern": "like {}",
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "table",
    "null": "none",
}


def possible_values(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a field may be, in words, from its JSON schema: `whole number, >= 1 or none`."""
    if "$ref" in schema:
        return possible_values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(possible_values(part, definitions) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = _TYPES.get(schema.get("type", ""), "anything")
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])


def suite_page(suite: Suite, registry: Registry) -> Page:
    """The page on a suite, with its matrix; the cells of a row differ in their seed.

    Raises:
        UsageError: something in it that cannot be meant.
    """
    from metabench.runner.matrix import build_matrix

    cells = build_matrix(suite, registry)
    rows: dict[object, dict[str, object]] = {}
    seeds: dict[object, list[int]] = {}
    for cell in cells:
        row = rows.setdefault(
            cell.row,
            {
                "dataset": cell.dataset.label,
                "protocol": cell.protocol.name,
                "algorithm": cell.algorithm.label,
                "variant": cell.variant,
                "backbone": cell.backbone.label,
                "inference": cell.inference,
                "steps": cell.recipe.steps,
                "recipe_digest": cell.recipe.short_digest,
            },
        )
        seeds.setdefault(cell.row, []).append(cell.seed)
        row["seeds"] = seeds[cell.row]
    table: dict[str, object] = {
        "kind": "suite",
        "name": suite.name,
        "summary": suite.summary,
        "file": suite.source,
        "cells": len(cells),
    }
    page = Page(f"suite {suite.name}", {**table, "matrix": list(rows.values())})
    page.add("", facts(_in_words(table)))
    protocols = {cell.protocol.digest: cell.protocol for cell in cells}.values()
    evaluated: list[Row] = [
        {"digest": p.short_digest, "name": p.name, **p.model_dump(mode="json")} for p in protocols
    ]
    page.data["protocols"] = evaluated
    page.add("protocols (how rows are evaluated)", Table(evaluated, list(evaluated[0])))
    shown = [{**row, "seeds": ",".join(map(str, seeds[key]))} for key, row in rows.items()]
    page.add("matrix", Table(shown, MATRIX))
    return page
