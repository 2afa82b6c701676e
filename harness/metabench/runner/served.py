"""Whether a data set can serve a cell: the protocol, and each phase of training by its own recipe.

Asked before anything is trained, since some phases come after hours of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from metabench.api.phases import Choose, Collect, Episodic, Measure, Phase
from metabench.api.recipe import Recipe
from metabench.engine.build import training_bank, training_shape
from metabench.engine.descent import Descends
from metabench.engine.train import is_shared
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.errors import ProtocolError

NO_ITEMS = np.zeros((0, 1), dtype=np.uint8)


def check_served(
    banks: Mapping[str, ClassBank], protocol: Protocol, recipe: Recipe, phases: Sequence[Phase]
) -> None:
    """Raise ProtocolError unless each episode of test, validation and training can be drawn.

    Args:
        banks: the splits `train` and `test`, and `validation` where there is one.
        recipe: the cell's.
        phases: the algorithm's, each of which may have a recipe of its own.
    """
    banks["test"].check_serves(protocol.shape)
    held_out = banks.get("validation")
    if held_out is not None and _validates(recipe, phases):
        held_out.check_serves(protocol.shape)
    if recipe.refit and held_out is None:
        raise ProtocolError(
            "refit needs a meta-validation split, and class split "
            f"{protocol.class_split!r} has none",
            "set refit = false in the recipe, or choose another class split",
        )
    trained_on = [training_bank(banks["train"], recipe, protocol)]
    if recipe.refit and held_out is not None:
        trained_on.append(training_bank(_both(banks["train"], held_out), recipe, protocol))
    for phase in phases:
        if not isinstance(phase, Episodic | Collect | Measure) or not phase.recipe.steps:
            continue
        read = trained_on
        if isinstance(phase, Measure):
            read = [] if held_out is None else [held_out]
        for bank in read:
            _check_phase(phase, bank, protocol)


def _validates(recipe: Recipe, phases: Sequence[Phase]) -> bool:
    """Whether anything is scored on meta-validation by the protocol's own episodes."""
    descending = [p.recipe for p in phases if isinstance(p, Descends) and not is_shared(p)]
    asked = any(own.validate_every and own.steps for own in descending)
    return bool(recipe.validate_every) or asked or any(isinstance(p, Choose) for p in phases)


def _check_phase(phase: Episodic | Collect | Measure, bank: ClassBank, protocol: Protocol) -> None:
    shape, what = training_shape(phase.recipe, protocol), f"phase {phase.name!r}"
    if not isinstance(phase, Episodic) and phase.whole_classes:
        # The queries are what else a class has, and that has to be something.
        shape = shape.model_copy(update={"queries": 1})
        what += ", which takes whole classes"
    try:
        bank.check_serves(shape)
    except ProtocolError as error:
        raise ProtocolError(f"{what}: {error.message}", error.hint) from None


def _both(one: ClassBank, other: ClassBank) -> ClassBank:
    """The classes of two splits as one, without any item, which need not be read for this."""
    bare = (replace(bank, data=NO_ITEMS, rows=None) for bank in (one, other))
    return next(bare).joined(next(bare))
