"""Baseline++: its head against PyTorch's SGD on the cosines, and its own shared pre-training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.api.phases import Batches
from metabench.api.recipe import Recipe
from metabench.engine.train import planned_phases
from metabench_plugins.algorithms.metric.baseline_pp import (
    PRETRAINING_SCALE,
    BaselinePP,
    BaselinePPHyperparameters,
    CosineClassifier,
    fit_cosine_head,
)
from metabench_plugins.algorithms.transfer.baseline import Baseline
from metabench_plugins.backbones.identity import Identity

LABELS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0], [2, 1, 0, 0, 1, 2, 2, 2]])
MEMBER = F.one_hot(LABELS, 3).bool()


def some_features(size: int = 6) -> Tensor:
    return torch.randn(2, 8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("momentum", "scale"), [(0.0, 2.0), (0.9, 10.0)])
@pytest.mark.parametrize("size", [3, 20])
def test_each_step_is_that_of_sgd(momentum: float, scale: float, size: int) -> None:
    """On the weights themselves, with more dimensions than items and with fewer."""
    hp = BaselinePPHyperparameters(
        head_steps=25, head_lr=0.05, head_momentum=momentum, head_scale=scale
    )
    features = some_features(size)
    found = fit_cosine_head(features, MEMBER, hp)
    for b in range(2):
        unit = features[b] / features[b].norm(dim=1, keepdim=True)
        means = torch.stack([unit[LABELS[b] == n].mean(0) for n in range(3)])
        weights = means.clone().requires_grad_()
        optimizer = torch.optim.SGD([weights], lr=0.05, momentum=momentum)
        for _ in range(25):
            optimizer.zero_grad()
            cosines = F.cosine_similarity(features[b].unsqueeze(1), weights.unsqueeze(0), dim=-1)
            F.cross_entropy(scale * cosines, LABELS[b]).backward()
            optimizer.step()
        torch.testing.assert_close(found[b], weights.detach())
        assert not torch.allclose(found[b], means, atol=1e-2)  # there was something to fit


def test_padding_is_left_out_of_means_and_loss() -> None:
    features, hp = some_features(), BaselinePPHyperparameters()
    member = MEMBER.clone()
    member[:, 6:] = False
    padded = fit_cosine_head(features, member, hp)
    torch.testing.assert_close(padded, fit_cosine_head(features[:, :6], MEMBER[:, :6], hp))
    assert not torch.allclose(padded, fit_cosine_head(features, MEMBER, hp))


def test_features_without_direction_do_no_harm() -> None:
    """All zero, as behind a ReLU: of one item, of one class, of everything."""
    hp = BaselinePPHyperparameters()
    for zero in (LABELS == 9, LABELS == 0, LABELS >= 0):
        features = some_features().float()
        features[:, 0] = 0
        features[zero] = 0
        assert fit_cosine_head(features, MEMBER, hp).isfinite().all()


@torch.no_grad()
def test_logits_are_scaled_cosines(lab) -> None:
    lab = lab.double().with_protocol(shots=3)
    algorithm = lab.make(BaselinePP, BaselinePPHyperparameters(head_scale=3.0, head_steps=0))
    support, queries, _, _ = lab.batch(2)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        known, asked = (
            algorithm.backbone(support.items.data[b]),
            algorithm.backbone(queries.data[b]),
        )
        unit = known / known.norm(dim=1, keepdim=True)
        for n in range(5):
            mean = unit[support.targets.values[b] == n].mean(0)
            expected = 3 * asked @ mean / (asked.norm(dim=1) * mean.norm())
            torch.testing.assert_close(logits[b, :, n], expected)


@torch.no_grad()
def test_the_pretrained_classifier_compares_directions(lab) -> None:
    lab = lab.double()
    algorithm = lab.make(BaselinePP)
    [phase] = algorithm.phases(BaselinePP.recipe)
    assert isinstance(phase.module, CosineClassifier)
    classifier = phase.module.double()
    images = lab.batch(1).queries.data[0]
    features, weights = algorithm.backbone(images), classifier.classifier.weight
    cosines = F.cosine_similarity(features.unsqueeze(1), weights.unsqueeze(0), dim=-1)
    torch.testing.assert_close(classifier(images), PRETRAINING_SCALE * cosines)
    assert classifier(images).shape == (25, algorithm.problem.train_classes)


def test_the_pretraining_is_shared_and_no_setting_reaches_it(lab) -> None:
    recipe = Recipe(steps=5, batch_size=32)
    backbones = []
    for kind, hp in (
        (BaselinePP, BaselinePPHyperparameters()),
        (BaselinePP, BaselinePPHyperparameters(head_scale=2.0, head_steps=3, head_lr=1.0)),
        (Baseline, None),
    ):
        algorithm = lab.make(kind, hp, recipe=recipe)
        [phase] = planned_phases(algorithm, recipe, seed=0)
        assert isinstance(phase, Batches)
        assert phase.shared
        lab.train(algorithm, recipe)
        backbones.append(algorithm.backbone.state_dict())
    own, other, linear = backbones
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    assert any(not torch.equal(value, linear[name]) for name, value in own.items())


def test_over_pixels_nothing_is_trained(lab) -> None:
    algorithm = lab.make(BaselinePP, backbone=Identity)
    assert algorithm.phases(BaselinePP.recipe) == []
    assert lab.accuracies(algorithm, 20).mean() > 0.25
