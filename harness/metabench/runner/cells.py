"""Cells: one training run and its test, as plain data with nothing left to defaults."""

from __future__ import annotations

import shlex
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue

from metabench.api.recipe import Recipe
from metabench.episodes.digest import digest
from metabench.episodes.protocol import Protocol


class Choice(BaseModel):
    """A plugin with its settings.

    Attributes:
        name: the registered name.
        label: what tables call it; the name, unless the suite says otherwise.
        hyperparameters: all of them, defaults included, as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    hyperparameters: dict[str, JsonValue] = {}


class RowKey(NamedTuple):
    """What makes a row of the table; the cells of a row differ in their training seed only."""

    suite: str
    dataset: str
    protocol_digest: str
    algorithm: str
    variant: str
    backbone: str


class Cell(BaseModel):
    """One training run and its test. Plain data: it can be pickled, and written as JSON and back.

    Attributes:
        suite: the suite's name.
        dataset, protocol, algorithm, backbone: what is run; the class split is a real one.
        variant: the suite's label, or the settings that differ from the plugin's defaults, and
            behind it what `--set` changed.
        inference: as the algorithm declares it under these hyper-parameters.
        recipe: how it is trained, nothing left to defaults.
        seed: the training seed.
        arguments: the options of `metabench run` that choose this cell in its suite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    dataset: Choice
    protocol: Protocol
    algorithm: Choice
    variant: str
    backbone: Choice
    inference: Literal["inductive", "transductive"]
    recipe: Recipe
    seed: int
    arguments: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Short and for people: `quickdraw/5w1s15q/maml/conv4-32/seed0`; unique in a matrix."""
        algorithm = f"{self.algorithm.name}:{self.variant}" if self.variant else self.algorithm.name
        parts = [self.dataset.label, self.protocol.name, algorithm, self.backbone.label]
        return "/".join([*parts, f"seed{self.seed}"])

    @property
    def row(self) -> RowKey:
        """The row of the table that it belongs to."""
        return RowKey(
            self.suite,
            self.dataset.label,
            self.protocol.digest,
            self.algorithm.label,
            self.variant,
            self.backbone.label,
        )

    @property
    def settings_digest(self) -> str:
        """Of all that the suite says of the cell; not of the line that chooses it."""
        rest = self.model_dump(mode="json", exclude={"arguments", "recipe", "protocol"})
        return digest({**rest, "recipe": self.recipe.identity, "protocol": self.protocol.identity})

    def command(self, suite: str | None = None) -> str:
        """The line that runs it again, for a shell.

        Args:
            suite: the suite's file, where its name is not registered.
        """
        return shlex.join(["metabench", "run", "--suite", suite or self.suite, *self.arguments])
