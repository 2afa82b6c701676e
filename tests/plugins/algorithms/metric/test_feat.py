"""FEAT: its loss against loops over classes, and its phases; inference: test_against_easyfsl."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp, softmax
from torch import Tensor

from metabench.api.phases import Episodic
from metabench.api.recipe import Recipe
from metabench.engine.train import planned_phases
from metabench_plugins.algorithms.attention import SelfAttention
from metabench_plugins.algorithms.metric.feat import FEAT, FEATHyperparameters
from metabench_plugins.algorithms.transfer.baseline import Baseline
from metabench_plugins.backbones.identity import Identity


def adapted(attention: SelfAttention, points: np.ndarray) -> np.ndarray:
    """(n, D): one head of attention and a layer norm, point by point."""

    def weights(layer: torch.nn.Module) -> np.ndarray:
        return layer.weight.detach().numpy()

    found = np.empty_like(points)
    for q, point in enumerate(points):
        query = weights(attention.query) @ point
        scores = [query @ (weights(attention.key) @ p) / math.sqrt(len(point)) for p in points]
        shares = softmax(scores)
        values = [weights(attention.value) @ p for p in points]
        mixed = sum(share * value for share, value in zip(shares, values, strict=True))
        moved = point + weights(attention.out) @ mixed + attention.out.bias.detach().numpy()
        unit = (moved - moved.mean()) / np.sqrt(moved.var() + attention.norm.eps)
        found[q] = unit * weights(attention.norm) + attention.norm.bias.detach().numpy()
    return found


def cross_entropy(logits: np.ndarray, label: int) -> float:
    return float(logsumexp(logits) - logits[label])


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_that_of_the_paper(lab, weight: float) -> None:
    lab = lab.double().with_protocol(ways=3, shots=2, queries=2)
    hp = FEATHyperparameters(contrast=weight, temperature=8.0, contrast_temperature=4.0)
    algorithm = lab.make(FEAT, hp).train()
    for parameter in algorithm.attention.parameters():  # nothing is as it was initialised
        torch.nn.init.normal_(parameter, std=0.3)
    batch = lab.batch(2)
    with torch.no_grad():
        known, asked = algorithm.embed_episode(batch)
        loss = float(algorithm.training_loss(batch, lab.context("train")))
    main, auxiliary = [], []
    for b in range(2):
        support, queries = known.items.data[b].numpy(), asked.data[b].numpy()
        labels, answers = known.targets.values[b].numpy(), batch.query_targets.values[b].numpy()
        means = np.stack([support[labels == n].mean(axis=0) for n in range(3)])
        prototypes = adapted(algorithm.attention, means)
        for query, answer in zip(queries, answers, strict=True):
            main.append(cross_entropy(-((query - prototypes) ** 2).sum(axis=1) / 8, answer))
        items, classes = np.concatenate([support, queries]), np.concatenate([labels, answers])
        sets = [adapted(algorithm.attention, items[classes == n]) for n in range(3)]
        centres = np.stack([points.mean(axis=0) for points in sets])
        for n, points in enumerate(sets):
            for point in points:
                logits = -((point - centres) ** 2).sum(axis=1) / 4
                auxiliary.append(cross_entropy(logits, n))
    assert loss == pytest.approx(np.mean(main) + weight * np.mean(auxiliary), rel=1e-9)


def test_padding_is_in_no_set() -> None:
    """The auxiliary loss of classes of 1, 2 and 3 items, beside items that are none."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 9, 5, dtype=torch.float64, generator=generator)
    member = F.one_hot(torch.tensor([[0, 1, 1, 2, 2, 2, 0, 1, 2]]), 3).bool()
    member[:, 6:] = False

    class Adapts:
        attention = SelfAttention(5, 0.0).double()
        hp = FEATHyperparameters()

    def loss(points: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        points = points.clone().requires_grad_()
        value = FEAT.auxiliary_loss(Adapts, points, member)  # type: ignore[arg-type]
        return value.detach(), torch.autograd.grad(value, points)[0]

    value, slope = loss(points, member)
    expected, expected_slope = loss(points[:, :6], member[:, :6])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope[:, :6], expected_slope)
    assert not slope[:, 6:].any()


def test_dropout_is_for_training_alone(lab) -> None:
    algorithm = lab.make(FEAT, FEATHyperparameters(dropout=0.5))
    points = torch.ones(1, 4, algorithm.backbone.feature_dim)
    assert torch.equal(algorithm.attention(points), algorithm.attention(points))
    algorithm.train()
    assert not torch.equal(algorithm.attention(points), algorithm.attention(points))


def test_it_starts_from_the_baselines_pretraining(lab) -> None:
    """To the last bit where the number of steps is the same, so that it is trained once."""
    recipe = Recipe(steps=2, queries=2, batch_size=32)
    algorithm = lab.make(FEAT, FEATHyperparameters(pretrain_ratio=2.0), recipe=recipe)
    before, episodes = planned_phases(algorithm, recipe, seed=0)
    longer = Recipe(steps=4, batch_size=32)
    [baselines] = planned_phases(lab.make(Baseline, recipe=longer), longer, seed=0)
    assert before.shared
    assert before.recipe.batch_identity == baselines.recipe.batch_identity
    assert (before.name, type(before.module)) == (baselines.name, type(baselines.module))
    weights = baselines.module.state_dict()
    assert all(torch.equal(v, weights[name]) for name, v in before.module.state_dict().items())
    assert episodes == Episodic(recipe)


def test_without_pretraining_there_are_episodes_alone(lab) -> None:
    recipe = Recipe(steps=2)
    alone = FEATHyperparameters(pretrain_ratio=0)
    assert lab.make(FEAT, alone).phases(recipe) == [Episodic(recipe)]
    assert lab.make(FEAT, backbone=Identity).phases(recipe) == [Episodic(recipe)]
