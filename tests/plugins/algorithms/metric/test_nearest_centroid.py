"""SimpleShot against NumPy, and the pre-training that it shares with the baseline."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metabench.api.phases import Batches, Fit
from metabench.api.recipe import Recipe
from metabench.engine.build import training_bank
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.train import planned_phases, train
from metabench_plugins.algorithms.metric.nearest_centroid import (
    NearestCentroid,
    NearestCentroidHyperparameters,
)
from metabench_plugins.algorithms.transfer.baseline import Baseline
from metabench_plugins.backbones.identity import Identity

SHORT = Recipe(steps=6, batch_size=32)


def length_one(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.mark.parametrize("normalisation", ["un", "l2n", "cl2n"])
def test_scores_are_those_of_the_paper(lab, normalisation: str) -> None:
    algorithm = lab.make(
        NearestCentroid, NearestCentroidHyperparameters(normalisation=normalisation)
    )
    lab.train(algorithm, SHORT)
    algorithm.double()
    lab = lab.double().with_protocol(shots=4)
    algorithm.requires_grad_(False)
    centre = algorithm.centre.numpy()

    def normalised(features: Tensor) -> np.ndarray:
        values = features.numpy()
        return {
            "un": lambda: values,
            "l2n": lambda: length_one(values),
            "cl2n": lambda: length_one(values - centre),
        }[normalisation]()

    support, queries, _, _ = lab.batch(2)
    kept = torch.tensor([i for i in range(20) if i not in (1, 2, 3, 9)])
    support = support._replace(
        items=support.items._replace(data=support.items.data[:, kept]),
        targets=support.targets._replace(values=support.targets.values[:, kept]),
    )
    scores = lab.logits(algorithm, support, queries).numpy()
    for b in range(2):
        known = normalised(algorithm.backbone(support.items.data[b]))
        asked = normalised(algorithm.backbone(queries.data[b]))
        labels = support.targets.values[b].numpy()
        for n in range(5):
            centroid = known[labels == n].mean(axis=0)
            expected = -(np.linalg.norm(asked - centroid, axis=1) ** 2)
            np.testing.assert_allclose(scores[b, :, n], expected, rtol=1e-7, atol=1e-9)


def test_the_centre_is_the_mean_feature_of_training_as_at_test(lab) -> None:
    """With the running moments of batch norm, which finding it leaves as they were."""
    algorithm = lab.make(NearestCentroid)
    lab.train(algorithm, SHORT)
    without = NearestCentroidHyperparameters(normalisation="un")
    untouched = lab.make(NearestCentroid, without)
    lab.train(untouched, SHORT)
    untouched.requires_grad_(False)
    for name, value in untouched.backbone.state_dict().items():
        assert torch.equal(algorithm.backbone.state_dict()[name], value)
    assert not untouched.centre.any()

    store = lab.store("train")
    items = np.arange(store.bank.n_items)
    features = [untouched.backbone(store.gather(part)) for part in np.array_split(items, 40)]
    torch.testing.assert_close(algorithm.centre, torch.cat(features).double().mean(0).float())


def test_only_cl2n_reads_the_training_split_again(lab) -> None:
    def kinds(normalisation: str, **how: object) -> list[type]:
        hp = NearestCentroidHyperparameters(normalisation=normalisation)
        return [type(phase) for phase in lab.make(NearestCentroid, hp, **how).phases(SHORT)]

    assert kinds("un") == kinds("l2n") == [Batches]
    assert kinds("cl2n") == [Batches, Fit]
    assert kinds("cl2n", backbone=Identity) == [Fit]
    assert kinds("un", backbone=Identity) == []


def test_pixels_reach_what_they_give_away(real_lab) -> None:
    """5-way 1-shot, CL2N on pixels: .42 measured; there are no steps in it."""
    lab = real_lab.with_protocol(queries=15)
    algorithm = lab.make(NearestCentroid, backbone=Identity)
    store = ItemStore(lab.banks["train"], algorithm.problem.item, torch.device("cpu"))
    result = train(algorithm, Recipe(steps=4000), TrainingData(store, lab.protocol), seed=0)
    assert (result.steps, result.items) == (0, 0)
    mean = store.gather(np.arange(store.bank.n_items)).flatten(1).double().mean(0)
    torch.testing.assert_close(algorithm.centre, mean.float())
    assert lab.accuracies(algorithm, 400).mean() == pytest.approx(0.42, abs=0.03)


class Kept:
    """Shared phases in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] | None = None
        self.published = 0

    def note(self, phase: Batches) -> None:
        self.noted = phase.name

    def find(self, phase: Batches) -> dict[str, Tensor] | None:
        return self.tensors

    def publish(self, phase: Batches, tensors: dict[str, Tensor], curve: list) -> None:
        self.tensors, self.published = tensors, self.published + 1


def test_the_pretraining_is_the_baselines_to_the_last_bit(lab) -> None:
    """Alone, or taken from whoever trained it first: the same classifier and the same backbone."""
    modules, kept = {}, {Baseline: Kept(), NearestCentroid: Kept()}
    bank = training_bank(lab.banks["train"], SHORT, lab.protocol)
    for kind, shelf in kept.items():
        algorithm = lab.make(kind, recipe=SHORT, seed=3)
        data = TrainingData(
            ItemStore(bank, algorithm.problem.item, torch.device("cpu")), lab.protocol
        )
        train(algorithm, SHORT, data, seed=3, shared=shelf)
        modules[kind] = algorithm.backbone.state_dict()
        assert shelf.published == 1
    first, second = kept[Baseline].tensors, kept[NearestCentroid].tensors
    assert first.keys() == second.keys()
    assert "classifier.weight" in first
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    names = modules[Baseline].keys()
    assert all(torch.equal(modules[Baseline][n], modules[NearestCentroid][n]) for n in names)

    taker = lab.make(NearestCentroid, recipe=SHORT, seed=3)
    train(taker, SHORT, data, seed=3, shared=kept[Baseline])
    assert kept[Baseline].published == 1
    alone = lab.make(NearestCentroid, recipe=SHORT, seed=3)
    train(alone, SHORT, data, seed=3)
    assert all(torch.equal(v, alone.state_dict()[n]) for n, v in taker.state_dict().items())


def test_the_shared_phase_starts_from_the_seed_whoever_asks(lab) -> None:
    starts = []
    for kind in (Baseline, NearestCentroid):
        phase = planned_phases(lab.make(kind, recipe=SHORT, seed=5), SHORT, seed=5)[0]
        assert isinstance(phase, Batches)
        assert phase.shared
        starts.append(phase.module.state_dict())
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
