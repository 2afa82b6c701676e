"""Prototypical networks against hand-written loops and SciPy's distances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from metabench.api.items import Items, Support, Targets
from metabench_plugins.algorithms.metric.protonet import ProtoNet, ProtoNetHyperparameters

SCIPY = {"squared-euclidean": "sqeuclidean", "cosine": "cosine"}


@pytest.mark.parametrize("distance", SCIPY)
@pytest.mark.parametrize("temperature", [1.0, 0.25])
@torch.no_grad()
def test_logits_are_negative_distances_to_class_means(
    lab, distance: str, temperature: float
) -> None:
    lab = lab.double().with_protocol(shots=4)
    hp = ProtoNetHyperparameters(distance=distance, temperature=temperature)
    algorithm = lab.make(ProtoNet, hp)
    support, queries, _, _ = lab.batch(3)
    kept = torch.tensor([i for i in range(20) if i not in (1, 2, 3, 9, 19)])  # 1, 4, 3, 4, 3 shots
    support = Support(
        Items(support.items.data[:, kept]), Targets(support.targets.values[:, kept]), 5
    )
    logits = lab.logits(algorithm, support, queries).numpy()
    for b in range(3):
        features = algorithm.backbone(support.items.data[b]).numpy()
        labels = support.targets.values[b].numpy()
        prototypes = np.stack([features[labels == n].mean(axis=0) for n in range(5)])
        asked = algorithm.backbone(queries.data[b]).numpy()
        expected = -cdist(asked, prototypes, SCIPY[distance]) / temperature
        np.testing.assert_allclose(logits[b], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_predictions_equal_those_of_a_loop(lab) -> None:
    lab = lab.with_protocol(shots=3)
    algorithm = lab.make(ProtoNet)
    support, queries, _, _ = lab.batch(2)
    predicted = lab.logits(algorithm, support, queries).argmax(-1)
    for b in range(2):
        for q in range(queries.data.shape[1]):
            asked = algorithm.backbone(queries.data[b, q : q + 1])[0]
            nearest, least = -1, float("inf")
            for n in range(5):
                of_class = support.items.data[b][support.targets.values[b] == n]
                prototype = sum(algorithm.backbone(item[None])[0] for item in of_class) / 3
                distance = float(((asked - prototype) ** 2).sum())
                if distance < least:
                    nearest, least = n, distance
            assert predicted[b, q] == nearest


def test_gradients_of_the_loss_are_those_of_the_plain_formula(lab) -> None:
    """The loss of the paper's algorithm 1, written with differences instead of products."""
    lab = lab.double().with_protocol(shots=2)
    algorithm = lab.make(ProtoNet)
    batch = lab.batch(2)
    algorithm.train()
    algorithm.training_loss(batch, lab.context("train")).backward()
    actual = [p.grad.clone() for p in algorithm.parameters()]

    algorithm.zero_grad()
    size = batch.support.targets.values.shape[1]
    everything = torch.cat([batch.support.items.data, batch.queries.data], 1)
    features = algorithm.backbone(everything.flatten(0, 1)).unflatten(0, (2, -1))
    prototypes = features[:, :size].unflatten(1, (5, 2)).mean(2)
    differences = features[:, size:, None] - prototypes[:, None]
    log_p = (-(differences**2).sum(-1)).log_softmax(-1)
    (-log_p.gather(2, batch.query_targets.values[..., None]).mean()).backward()
    for ours, plain in zip(actual, algorithm.parameters(), strict=True):
        torch.testing.assert_close(ours, plain.grad, rtol=1e-7, atol=1e-10)
