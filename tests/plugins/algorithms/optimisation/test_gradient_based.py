"""What holds for maml, fomaml, anil and reptile alike: inference mode, symmetries, learning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from metabench.api.recipe import Recipe
from metabench_plugins.algorithms.optimisation.anil import ANIL
from metabench_plugins.algorithms.optimisation.fomaml import FOMAML
from metabench_plugins.algorithms.optimisation.maml import MAML
from metabench_plugins.algorithms.optimisation.reptile import Reptile
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters

Lab = Any
ALGORITHMS = [MAML, FOMAML, ANIL, Reptile]
OPTIONS = ["support", "support+1", "running", "batch"]


def recipe(kind: Any, steps: int) -> Recipe:
    """Its own recipe, cut short and without validation."""
    return kind.recipe.model_copy(update={"steps": steps, "validate_every": 0, "select": "last"})


def briefly_trained(lab: Lab, kind: Any, **settings: Any) -> Any:
    """Four meta-steps: enough that weights and moments are no longer those of a new network."""
    algorithm = lab.make(kind, kind.hyperparameters(**settings))
    lab.train(algorithm, recipe(kind, 4))
    return algorithm


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
def test_predictions_depend_on_other_queries_only_where_declared(
    lab: Lab, kind: Any, option: str, dtype: str
) -> None:
    lab = lab.double() if dtype == "float64" else lab
    algorithm = briefly_trained(lab, kind, batch_norm=option, inner_steps_test=4)
    declared = kind.inference_mode(algorithm.hp)
    assert declared == ("transductive" if option == "batch" else "inductive")
    assert bool(lab.dependence(algorithm)) == (declared == "transductive")


@pytest.mark.parametrize("kind", [MAML, FOMAML, ANIL], ids=lambda kind: kind.name)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_order_of_the_support_set_does_not_matter_where_declared(
    lab: Lab, kind: Any, option: str
) -> None:
    assert kind.equivariant_to == {"support-order"}
    lab = lab.with_protocol(shots=3).double()
    algorithm, batch = briefly_trained(lab, kind, batch_norm=option), lab.batch()
    with torch.no_grad():
        logits = lab.logits(algorithm, batch.support, batch.queries)
        again = lab.logits(algorithm, lab.shuffle_support(batch.support), batch.queries)
    torch.testing.assert_close(again, logits, rtol=1e-9, atol=1e-9)


def test_reptiles_mini_batches_depend_on_the_order_and_it_declares_so(lab: Lab) -> None:
    lab = lab.with_protocol(shots=3).double()
    algorithm, batch = briefly_trained(lab, Reptile), lab.batch()
    assert Reptile.equivariant_to == frozenset()
    with torch.no_grad():
        logits = lab.logits(algorithm, batch.support, batch.queries)
        again = lab.logits(algorithm, lab.shuffle_support(batch.support), batch.queries)
    assert (again - logits).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
def test_class_labels_do_matter_to_a_learnt_head_and_none_declares_otherwise(
    lab: Lab, kind: Any
) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm, batch = briefly_trained(lab, kind), lab.batch()
    assert "class-labels" not in kind.equivariant_to
    with torch.no_grad():
        logits = lab.logits(algorithm, batch.support, batch.queries)
        renamed = lab.logits(algorithm, lab.relabel(batch.support), batch.queries)
    assert (renamed - logits.roll(1, dims=-1)).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
def test_an_episode_is_predicted_the_same_alone_and_in_a_batch(lab: Lab, kind: Any) -> None:
    lab = lab.double()
    algorithm, batch = briefly_trained(lab, kind), lab.batch(3)
    with torch.no_grad():
        together = lab.logits(algorithm, batch.support, batch.queries)
        first = batch.support._replace(
            items=batch.support.items._replace(data=batch.support.items.data[:1]),
            targets=batch.support.targets._replace(values=batch.support.targets.values[:1]),
        )
        alone = lab.logits(algorithm, first, batch.queries._replace(data=batch.queries.data[:1]))
    torch.testing.assert_close(alone[0], together[0])


def learns(lab: Lab, kind: Any, steps: int, episodes: int) -> tuple[float, float]:
    """(gain, t statistic) of training over the untrained self, on the same test episodes."""
    width = Conv4Hyperparameters(width=16, downsample="stride")
    untrained = lab.make(kind, backbone=Conv4, backbone_hp=width)
    trained = copy.deepcopy(untrained)
    lab.train(trained, recipe(kind, steps))
    gain: tuple[float, float] = lab.gain(untrained, trained, episodes)
    return gain


@pytest.mark.parametrize(
    ("kind", "steps", "episodes"),
    [(MAML, 30, 60), (FOMAML, 40, 60), (ANIL, 30, 60), (Reptile, 100, 40)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_few_steps_on_drawings_beat_no_training(
    real_lab: Lab, kind: Any, steps: int, episodes: int
) -> None:
    gain, t = learns(real_lab.with_protocol(queries=10), kind, steps, episodes)
    assert gain > 0.02
    assert t > 3.5


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize(
    ("kind", "steps"),
    [(MAML, 400), (FOMAML, 500), (ANIL, 400), (Reptile, 1500)],
    ids=lambda value: getattr(value, "name", None),
)
def test_training_on_drawings_is_worth_a_tenth(
    real_lab: Lab, kind: Any, steps: int, shots: int
) -> None:
    gain, t = learns(real_lab.with_protocol(shots=shots, queries=15), kind, steps, 200)
    assert gain > 0.1
    assert t > 10
