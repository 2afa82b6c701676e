"""The recipe: how an algorithm is *trained*. Part of the cell, shown in the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from metabench.episodes.digest import digest, short


class Hyperparameters(BaseModel):
    """Base of every plugin's hyper-parameters: typed, bounded, documented, frozen.

    Each field needs a default and a description, and bounds where there are any:
    `inner_lr: float = Field(0.4, gt=0, description="inner-loop learning rate (alpha)")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_serializer("*", mode="wrap", when_used="json")
    def _in_one_order(self, value: Any, dump: Callable[[Any], Any]) -> Any:
        # A set of texts has another order in each process, and a cell's key must not.
        return _sorted_sets(value, dump(value))


def _sorted_sets(value: Any, dumped: Any) -> Any:
    """The JSON of a value, with the elements of each set in it sorted."""
    if isinstance(value, set | frozenset | list | tuple) and isinstance(dumped, list):
        parts = [_sorted_sets(*pair) for pair in zip(value, dumped, strict=True)]
        ordered = isinstance(value, list | tuple)
        return (
            parts if ordered else sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))
        )
    if isinstance(value, dict) and isinstance(dumped, dict):
        pairs = zip(dumped.items(), value.values(), strict=True)
        return {key: _sorted_sets(inner, part) for (key, part), inner in pairs}
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        return {key: _sorted_sets(getattr(value, key, None), part) for key, part in dumped.items()}
    return dumped


Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "linear", "cosine", "step"]


class Recipe(Hyperparameters):
    """Budget in steps, training episodes, optimiser, schedule, augmentation, model selection.

    A `refit` is a training by this recipe with the selected number as its `steps`. What an
    algorithm derives from them follows: supervised training before it of `pretrain_ratio` steps for
    each of the recipe's becomes shorter in proportion. That is trained anew too, on the classes of
    both splits.
    """

    NEUTRAL: ClassVar[dict[str, object]] = {}

    steps: Annotated[int, Field(ge=0, description="meta-steps; 0 leaves it untrained")] = 1000
    ways: Annotated[int | None, Field(ge=2, description="training ways; none: the protocol's")] = (
        None
    )
    shots: Annotated[
        int | None, Field(ge=1, description="training shots; none: the protocol's")
    ] = None
    queries: Annotated[
        int | None, Field(ge=0, description="training queries a class; none: the protocol's")
    ] = None
    meta_batch: Annotated[int, Field(ge=1, le=10_000, description="episodes a meta-step")] = 1
    batch_size: Annotated[
        int, Field(ge=1, le=1_000_000, description="items a step outside episodes")
    ] = 64

    optimizer: Optimizer = "adam"
    lr: Annotated[float, Field(gt=0, description="outer learning rate")] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD; Adam's beta1 stays .9")] = 0.0
    nesterov: Annotated[bool, Field(description="Nesterov momentum, with SGD")] = False
    weight_decay: Annotated[float, Field(ge=0, description="decoupled only with adamw")] = 0.0
    clip_norm: Annotated[float | None, Field(gt=0, description="bound of the gradient's norm")] = (
        None
    )
    schedule: Schedule = "constant"
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 0
    decay_every: Annotated[int, Field(ge=1, description="steps between decays (step)")] = 2000
    decay_factor: Annotated[float, Field(gt=0, le=1, description="factor of a decay (step)")] = 0.5

    augmentation: Literal["none", "rotation-classes"] = "none"
    validate_every: Annotated[
        int, Field(ge=0, description="steps between validations; 0: never")
    ] = 0
    validation_episodes: Annotated[int, Field(ge=2, description="episodes a validation")] = 200
    select: Annotated[
        Literal["best", "last"], Field(description="best on validation, or the last step")
    ] = "best"
    refit: Annotated[
        bool,
        Field(description="after selection, train anew on train + validation for as many steps"),
    ] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum over 0")
        if self.refit and (self.select != "best" or not self.validate_every):
            raise ValueError("refit needs select = 'best' and validate_every over 0")
        if self.refit and self.schedule not in {"constant", "step"}:
            raise ValueError("refit ends at another step: it needs schedule constant or step")
        return self

    @property
    def identity(self) -> dict[str, object]:
        """What the digest is taken of."""
        fields = self.model_dump(mode="json")
        return {k: v for k, v in fields.items() if k not in self.NEUTRAL or self.NEUTRAL[k] != v}

    @property
    def batch_identity(self) -> dict[str, object]:
        """What training on batches depends on: nothing of episodes, validation or selection."""
        return {k: v for k, v in self.identity.items() if k not in _OF_EPISODES}

    @property
    def short_digest(self) -> str:
        return short("r", digest(self.identity))


_OF_EPISODES = {
    *("ways", "shots", "queries", "meta_batch", "augmentation"),
    *("validate_every", "validation_episodes", "select", "refit"),
}
"""Of a recipe; the augmentation shows in the classes that are trained on."""
