"""What a cell is: everything that decides its numbers, and the key that follows from it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from metabench.episodes.digest import digest
from metabench.errors import UsageError

SCHEMA = 1
"""The version of the result folder's layout; also part of every key."""

UNREAD = "unread-"
_ABSENT = object()


def fresh_code() -> str:
    """Stands for code that could not be read: unlike any other, so that it is never reused."""
    return UNREAD + uuid.uuid4().hex


def cell_key(parts: Mapping[str, Any]) -> str:
    """BLAKE2b-128 of canonical JSON, 32 hexadecimal digits: typed (1 is not 1.0), sorted keys.

    Raises:
        UsageError: a number in it that is not finite, or something that JSON has not.
    """
    try:
        return digest(dict(parts))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"a setting of this cell cannot be part of its identity: {error}",
            "settings are finite numbers, text, truth values, and lists or tables of them",
        ) from error


def refit_key(key: str) -> str:
    """Under which the training state of a cell's second training, on train + validation, is."""
    return digest([key, "refit"])


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginIdentity(_Part):
    """A plugin as it was used.

    Attributes:
        name: as registered.
        hp: the resolved hyper-parameters, defaults included.
        code: `metabench.store.code.code_digest` of its class, or `fresh_code()`.
    """

    name: str
    hp: dict[str, Any] = {}
    code: str


class DatasetIdentity(_Part):
    """A data set and how it is split.

    Attributes:
        name: as registered.
        hp: the resolved hyper-parameters.
        digest: of its decoded content and class names.
        classes: digest of which classes stand in which split, in their order.
        item: what one item is after decoding: shape, mean, standard deviation.
        code: as of a plugin; it resizes and splits.
    """

    name: str
    hp: dict[str, Any] = {}
    digest: str
    classes: str
    item: dict[str, Any]
    code: str


class Numerics(_Part):
    """What decides a number beside the code: precision, device type, threads, engine.

    Attributes:
        dtype: the precision by name, such as `float32`; see `metabench.engine.precision`.
        device: the type, `cpu` or `cuda`, never which one.
        threads: of PyTorch, within one operation.
        engine: which way the engine computes.
        chunks: chunk sizes by purpose.
        torch: major and minor version, such as `2.14`.
    """

    dtype: str
    device: str
    threads: int
    engine: str
    chunks: dict[str, int] = {}
    torch: str


class Identity(_Part):
    """A set of parts with a key; the same for two objects exactly if all parts are the same."""

    schema_version: int = SCHEMA

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        return cell_key(self.to_json())

    @property
    def codes(self) -> tuple[str, ...]:
        """The code digests in it."""
        leaves = _leaves(self.to_json())
        return tuple(v for path, v in leaves if path[-1] == "code" and isinstance(v, str))

    @property
    def reusable(self) -> bool:
        """False where some code could not be read: nobody can say that it is the same again."""
        return not any(code.startswith(UNREAD) for code in self.codes)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in `record.json`."""
        return self.model_dump(mode="json")

    def explain_difference(self, other: Identity) -> list[str]:
        """What changed from this one to the other, a line a part: `recipe.steps: 800 -> 900`."""
        old, new = dict(_leaves(self.to_json())), dict(_leaves(other.to_json()))
        return [
            f"{'.'.join(path)}: {_shown(old, path)} -> {_shown(new, path)}"
            for path in sorted(old.keys() | new.keys())
            if repr(old.get(path, _ABSENT)) != repr(new.get(path, _ABSENT))  # 1 is not 1.0
        ]


class CellIdentity(Identity):
    """A cell: data set x protocol x algorithm with its recipe x backbone x seed, and numerics.

    `protocol` and `recipe` are the `identity` of `Protocol` and `Recipe`.
    """

    protocol: dict[str, Any]
    recipe: dict[str, Any]
    dataset: DatasetIdentity
    algorithm: PluginIdentity
    backbone: PluginIdentity
    seed: int
    numerics: Numerics


class PhaseIdentity(Identity):
    """A shared training phase: what its artefact may depend on, and nothing else.

    Attributes:
        classes: what the training classes are: class split, image size, rotation, augmentation;
            and whether they are known, if not.
        name: the phase's; what it draws hangs on it.
        recipe: what of the phase's own matters to it.
        module: digest of what is trained: layers, their sizes and settings, which the code of a
            module's class doesn't tell.
        code: `code_digest` of the module's classes and the loss, or `fresh_code()`.
    """

    dataset: DatasetIdentity
    classes: dict[str, Any]
    backbone: PluginIdentity
    name: str
    recipe: dict[str, Any]
    module: str
    code: str
    seed: int
    numerics: Numerics


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested tables with their paths; lists count as values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _shown(leaves: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> str:
    if path not in leaves:
        return "absent"
    value = leaves[path]
    if path[-1] in {"code", "digest", "module"} and isinstance(value, str):
        return value if len(value) <= 12 else f"{value[:12]}..."
    return repr(value)
