"""Tables that people wrote, checked by pydantic models: what is wrong with them in one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from metabench.errors import UsageError

M = TypeVar("M", bound=BaseModel)

NONE = "none"
"""TOML has no null; this string stands for it where a field may be empty."""


def checked(model: type[M], table: Mapping[str, Any], where: str) -> M:
    """`table` as an instance of `model`; types are strict, but whole numbers pass for reals.

    Args:
        model: what the table should be.
        table: keys and values as TOML or JSON has them.
        where: the place, for the message, such as `my.toml, [[algorithm]] maml, recipe`.

    Raises:
        UsageError: an unknown key, with the nearest known one, or a value that is not allowed,
            with what is.
    """
    try:
        return model.model_validate_json(_as_json(model, table, where), strict=True)
    except ValidationError as error:
        raise _condensed(model, error.errors(), where) from None


def check_keys_and_values(model: type[BaseModel], table: Mapping[str, Any], where: str) -> None:
    """Check each key of a partial table; what only holds of the whole is left for later.

    Raises:
        UsageError: as `checked`.
    """
    try:
        model.model_validate_json(_as_json(model, table, where), strict=True)
    except ValidationError as error:
        alone = [e for e in error.errors() if e["loc"] and e["type"] != "missing"]
        if alone:
            raise _condensed(model, alone, where) from None


def unknown_key(where: str, key: str, known: Iterable[str]) -> UsageError:
    """The error for a key that is not one of `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"{where}: there is no key called {key!r}", hint)


def shown(value: object) -> str:
    """A value as a suite file or `--set` would have it; strings bare."""
    if isinstance(value, str):
        return value
    if value is None:
        return NONE
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def shown_settings(settings: Mapping[str, object]) -> str:
    """`inner_lr=0.1,inner_steps=3`, sorted by key; empty where there are none."""
    return ",".join(f"{key}={shown(settings[key])}" for key in sorted(settings))


def _as_json(model: type[BaseModel], table: Mapping[str, Any], where: str) -> str:
    def plain(key: str, value: Any) -> Any:
        if value == NONE and key in model.model_fields:
            optional = type(None) in get_args(model.model_fields[key].annotation)
            return None if optional else value
        return value

    parts = []
    for key, value in table.items():
        field = model.model_fields.get(key)
        hint = f"{key}: {field.description}" if field and field.description else ""
        try:
            text = json.dumps(plain(key, value), allow_nan=False)
        except TypeError:
            what = f"{key} = {value} has no meaning here (a date?)"
            raise UsageError(f"{where}: {what}", hint) from None
        except ValueError:
            raise UsageError(f"{where}: {key} = {value} should be a finite number", hint) from None
        parts.append(f"{json.dumps(key)}:{text}")
    return "{" + ",".join(parts) + "}"


def _condensed(model: type[BaseModel], errors: list[ErrorDetails], where: str) -> UsageError:
    # An unknown key first: it is often why another one is missing.
    errors = sorted(errors, key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    path = ".".join(str(part) for part in first["loc"])
    field = model.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    hint = f"{path}: {field.description}" if field and field.description else ""
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        error = unknown_key(where, path, model.model_fields)
        return UsageError(error.message + more, error.hint)
    if first["type"] == "missing":
        return UsageError(f"{where}: the key {path!r} is missing{more}", hint)
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return UsageError(f"{where}: {message}{more}")
    what = f"{path} = {json.dumps(first['input'], default=str)}"
    if message.startswith("Input should"):
        return UsageError(f"{where}: {what} {message.removeprefix('Input ')}{more}", hint)
    return UsageError(f"{where}: {what}: {message[0].lower()}{message[1:]}{more}", hint)
