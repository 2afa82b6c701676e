"""What `--set KEY=VALUE` changes: parsing, and which plugins it is meant for.

    maml.inner_lr=0.1          a hyper-parameter of an algorithm; of several by a shell pattern
    maml/batch.inner_lr=0.1    ... of one variant
    *.recipe.steps=100         a training setting
    protocol.episodes=100      a setting of every protocol
    backbone.conv4.width=16    a hyper-parameter of a backbone, by name or label
    dataset.NAME.KEY=VALUE     ... of a data set

A value is read as in TOML; what is no TOML value is text (`maml.batch_norm=batch`).
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal, NamedTuple

from metabench.errors import UsageError
from metabench.runner.patterns import algorithm_matches, any_match

Kind = Literal["algorithm", "backbone", "dataset", "protocol"]
HINT = "write --set maml.inner_lr=0.1, maml.recipe.steps=100, protocol.episodes=100 or the like"


class Override(NamedTuple):
    """One `--set`.

    Attributes:
        text: as it was typed.
        kind: what it changes.
        pattern: of the plugins that it changes; "*" for a protocol.
        recipe: whether `key` is a training setting of an algorithm.
        key, value: the setting.
    """

    text: str
    kind: Kind
    pattern: str
    recipe: bool
    key: str
    value: Any

    def is_for_algorithm(self, name: str, variant: str) -> bool:
        """Whether it is meant for an algorithm; whether that has the key is another question."""
        return self.kind == "algorithm" and algorithm_matches(self.pattern, name, variant)

    def is_for_plugin(self, kind: Kind, *names: str) -> bool:
        """Whether it is meant for a backbone or data set of these names, its label among them."""
        return self.kind == kind and any_match([self.pattern], names)


def parse_override(text: str) -> Override:
    """Take `--set KEY=VALUE` apart.

    Raises:
        UsageError: it has no `=`, or the key does not say whose it is.
    """
    path, equals, value = text.partition("=")
    target, dot, key = path.strip().rpartition(".")
    if not equals or not dot or not target or not key:
        raise UsageError(f"--set {text}: no such form", HINT)
    if target == "protocol":
        return Override(text, "protocol", "*", False, key, parse_value(value))
    for kind in ("backbone", "dataset"):
        if target == kind:
            raise UsageError(f"--set {text}: of which {kind}?", f"write {kind}.NAME.{key}=...")
        if target.startswith(f"{kind}."):
            pattern = target.removeprefix(f"{kind}.")
            return Override(text, kind, pattern, False, key, parse_value(value))
    pattern = target.removesuffix(".recipe")
    return Override(text, "algorithm", pattern, pattern != target, key, parse_value(value))


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text
