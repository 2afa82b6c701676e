"""Each phase is asked for what it reads, by its own recipe, before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metabench.api.phases import Batches, Choose, Collect, Episodic, Learn, Measure, Phase
from metabench.api.recipe import Recipe
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.errors import ProtocolError
from metabench.runner.bench import Workbench
from metabench.runner.plan import make_plan
from metabench.runner.served import check_served
from metabench.store.store import Store

PROTOCOL = Protocol(ways=2, shots=1, queries=3)
SIZES = {"train": [9, 8, 7, 6, 5], "validation": [5, 4, 4], "test": [4, 4]}


def banks(**changed: list[int]) -> dict[str, ClassBank]:
    """Splits whose classes have so many items."""
    return {split: bank(split, sizes) for split, sizes in {**SIZES, **changed}.items() if sizes}


def bank(split: str, sizes: list[int]) -> ClassBank:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    names = tuple(f"{split} {number}" for number in range(len(sizes)))
    return ClassBank(np.zeros((offsets[-1], 1), np.uint8), offsets, names, "made up", split)


def nothing(*_: Any) -> dict[str, torch.Tensor]:
    return {}


def few(**fields: Any) -> Recipe:
    return Recipe(**{"steps": 2, **fields})


def check(phases: list[Phase], recipe: Recipe | None = None, **changed: list[int]) -> None:
    check_served(banks(**changed), PROTOCOL, recipe or few(), phases)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (Episodic(few(ways=6)), "phase 'episodic': 6 ways asked for, but the train split has 5"),
        (Episodic(few(queries=5), "second"), "phase 'second': 1 shots [+] 5 queries = 6 items"),
        (Collect(nothing, few(shots=3)), "phase 'collect': 3 shots [+] 3 queries = 6 items"),
        (
            Collect(nothing, few(shots=5), whole_classes=True),
            "phase 'collect', which takes whole classes: .* class 'train 4' of the train split",
        ),
        (Measure(nothing, few(ways=4)), "phase 'measure': 4 ways .* the validation split has 3"),
        (
            Measure(nothing, few(shots=4), whole_classes=True),
            "phase 'measure', which takes whole classes: .* class 'validation 1' of the validation",
        ),
    ],
)
def test_what_a_phase_cannot_be_given_is_refused_and_the_phase_named(
    phase: Phase, said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        check([Episodic(few()), phase] if phase.name != "episodic" else [phase])


@pytest.mark.parametrize(
    "phase",
    [
        Episodic(few(steps=0, ways=6)),
        Episodic(few(ways=5, shots=2)),
        Collect(nothing, few(ways=5, shots=4, queries=99), whole_classes=True),
        Measure(nothing, few(ways=3, shots=3, queries=99), whole_classes=True),
        Measure(nothing, few(steps=0, ways=9)),
        Learn(few(ways=9), nothing),  # reads no split
        Batches(few(ways=9), nn.Identity(), nothing),
    ],
)
def test_what_it_can_be_given_is_not(phase: Phase) -> None:
    check([phase])


def test_the_cells_own_recipe_asks_for_nothing_where_no_phase_has_it() -> None:
    check([Episodic(few(ways=2))], few(ways=6))


@pytest.mark.parametrize(
    "phases",
    [
        [Choose(nothing, 2)],
        [Episodic(few(validate_every=1))],
        [Collect(nothing, few()), Learn(few(validate_every=1), nothing)],
    ],
)
def test_who_looks_at_validation_needs_the_protocols_episodes_there(phases: list[Phase]) -> None:
    check(phases)
    with pytest.raises(ProtocolError, match="'validation 0' of the validation split has 3"):
        check(phases, validation=[3, 9])
    check(phases, validation=[])
    check([Episodic(few())], validation=[3, 9])
    check([Batches(few(validate_every=1), nn.Identity(), nothing, shared=True)], validation=[3, 9])


def test_measuring_is_left_out_where_there_is_no_validation_split() -> None:
    check([Measure(nothing, few(ways=9))], validation=[])


def test_a_refit_trains_on_the_classes_of_validation_too() -> None:
    refit = few(validate_every=1, refit=True, queries=4)
    check([Episodic(refit)], refit, validation=[5, 5])
    with pytest.raises(ProtocolError, match=r"'validation 1' of the train\+validation split has 4"):
        check([Episodic(refit)], refit, validation=[5, 4])
    with pytest.raises(ProtocolError, match="refit needs a meta-validation split"):
        check([Episodic(refit)], refit, validation=[])


def test_a_plan_refuses_it_and_names_the_cell(ask, classes) -> None:
    class Measuring(classes["prototypes"]):
        name = "measuring"

        def phases(self, recipe: Recipe) -> list[Phase]:
            return [*super().phases(recipe), Measure(nothing, few(ways=53))]

    asked = ask(Measuring)
    bench = Workbench(asked.registry, asked.options.data_folder, asked.options.device)
    with pytest.raises(
        ProtocolError, match=r"/measuring/.*: phase 'measure': 53 ways asked .* has 52"
    ):
        make_plan(bench, Store.open(asked.options.results), asked.cells, suite="small.toml")
