"""The heads of unsupervised features: against scikit-learn, and against what they say they are."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from metabench import Episodic, Items, Recipe, Support, Targets, UsageError
from metabench.testing.conformance import algorithm_predictions as predicting
from metabench.testing.conformance import algorithm_training as training
from metabench.testing.conformance.finding import NotApplicableError
from metabench.testing.conformance.subject import AlgorithmSubject
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.metric.protonet import ProtoNet
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.algorithms.unsupervised.autoencoder_features import (
    AutoencoderFeatures,
    AutoencoderFeaturesHyperparameters,
)
from metabench_plugins.algorithms.unsupervised.heads import ridge
from metabench_plugins.algorithms.unsupervised.pca_features import (
    PCAFeatures,
    PCAFeaturesHyperparameters,
)
from metabench_plugins.backbones.mlp import MLP, MLPHyperparameters

Lab = Any
HEADS = ["centroid", "ridge", "mlp", "cnn", "rnn", "maml"]
KINDS = [
    pytest.param(PCAFeatures, PCAFeaturesHyperparameters, id="pca"),
    pytest.param(AutoencoderFeatures, AutoencoderFeaturesHyperparameters, id="autoencoder"),
]


def make(lab: Lab, head: str, kind: Any = PCAFeatures, **settings: Any) -> Any:
    hp = kind.hyperparameters(head=head, width=8, **settings)
    return lab.make(kind, hp, backbone=lab.SmoothConv)


# What classifies.


def uneven() -> tuple[Tensor, Tensor, Support]:
    """Two sets of 9 vectors of 14 dimensions, three classes, the second with padding."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 9, 14, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0, 0], [2, 1, 0, 0, 1, 2, 0, 0, 0]])
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    return features, labels, Support(Items(features, mask), Targets(labels, mask), 3)


@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_ridge_is_scikit_learns(penalty: float) -> None:
    features, labels, support = uneven()
    weight, bias = ridge(features, class_membership(support), penalty)
    for b, real in enumerate([9, 6]):
        known = features[b, :real].numpy()
        expected = Ridge(alpha=penalty, tol=1e-12).fit(known, np.eye(3)[labels[b, :real]])
        np.testing.assert_allclose(weight[b], expected.coef_, atol=1e-10)
        np.testing.assert_allclose(bias[b], expected.intercept_, atol=1e-10)


@torch.no_grad()
def test_centroid_and_ridge_predict_as_scikit_learn(lab: Lab) -> None:
    lab = lab.with_protocol(shots=3).double()
    batch = lab.batch(3)
    for head, reference in (("centroid", NearestCentroid()), ("ridge", Ridge(alpha=10.0))):
        algorithm = make(lab, head)
        found = lab.logits(algorithm, batch.support, batch.queries)
        for b in range(3):
            known, asked = (
                algorithm.code(items.data[b]).numpy()
                for items in (batch.support.items, batch.queries)
            )
            labels = batch.support.targets.values[b].numpy()
            reference.fit(known, labels if head == "centroid" else np.eye(5)[labels])
            expected = reference.predict(asked)
            answers = expected if head == "centroid" else expected.argmax(1)
            np.testing.assert_array_equal(found[b].argmax(1), answers)
            if head == "ridge":
                np.testing.assert_allclose(found[b], expected, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("head", ["mlp", "cnn", "rnn"])
def test_a_network_on_features_is_a_prototypical_network(lab: Lab, head: str) -> None:
    """The one that embeds items by the features and the head's network."""
    lab = lab.with_protocol(shots=2).double()
    algorithm, batch = make(lab, head), lab.batch(2)
    other = lab.make(ProtoNet, backbone=lab.SmoothConv)
    other.embed = algorithm.embed  # type: ignore[method-assign]
    expected = lab.logits(other, batch.support, batch.queries)
    found = lab.logits(algorithm, batch.support, batch.queries)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert found.unique().numel() > 100
    assert algorithm.embed(batch.queries.data[0]).shape[1] == algorithm.body.feature_dim


@torch.no_grad()
def test_rnn_reads_the_features_row_by_row(lab: Lab) -> None:
    """36 of them by 5: seven rows, and one that is padded."""
    algorithm, batch = make(lab.double(), "rnn", row=5), lab.double().batch(1)
    handed: list[Tensor] = []
    algorithm.body.register_forward_pre_hook(lambda _, args: handed.append(args[0]))
    algorithm.embed(batch.queries.data[0])
    (rows,) = handed
    code = algorithm.code(batch.queries.data[0])
    assert rows.shape == (25, 1, 8, 5)
    torch.testing.assert_close(rows.flatten(1)[:, :36], code)
    assert not rows.flatten(1)[:, 36:].any()


def test_maml_is_maml_of_a_small_network_whose_items_are_features(lab: Lab) -> None:
    lab = lab.with_protocol(shots=2).double()
    algorithm, batch = make(lab, "maml", inner_lr=0.3, inner_steps=4), lab.batch(2)
    items = algorithm.embed_sets(batch.support.items), algorithm.embed_sets(batch.queries)
    hp = MAMLHyperparameters(inner_lr=0.3, inner_steps=4)
    network = lab.make(MAML, hp, backbone=MLP, backbone_hp=MLPHyperparameters(hidden=(8,)))
    own = copy.deepcopy(algorithm.learner)
    network.backbone, network.head = own.backbone, own.head
    features = batch._replace(support=batch.support._replace(items=items[0]), queries=items[1])
    losses = [
        one.training_step(given, lab.context("train"))
        for one, given in ((algorithm, batch), (network, features))
    ]
    torch.testing.assert_close(*losses)
    expected = dict(network.named_parameters())
    for name, parameter in algorithm.learner.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-12)
    assert algorithm.learner.backbone.blocks[0].linear.weight.grad.abs().max() > 1e-6


def test_maml_has_one_output_a_class(lab: Lab) -> None:
    with pytest.raises(UsageError, match="cannot train with 7 ways"):
        lab.make(PCAFeatures, PCAFeaturesHyperparameters(head="maml"), recipe=Recipe(ways=7))


# What is trained, and what is left alone.


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_only_a_head_that_has_weights_is_trained_on_episodes(
    lab: Lab, kind: Any, settings: Any, head: str
) -> None:
    """And then the features stay as they were fitted, batch norm's moments too."""
    algorithm = make(lab, head, kind)
    recipe = Recipe(steps=2, queries=2, lr=0.1)
    episodic = [phase for phase in algorithm.phases(recipe) if isinstance(phase, Episodic)]
    assert bool(episodic) == (head not in {"centroid", "ridge"})
    if not episodic:
        assert not any(name.startswith(("body", "learner")) for name in algorithm.state_dict())
        return
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    algorithm.fitting = lambda recipe: []
    lab.train(algorithm, recipe)
    moved = {n for n, v in algorithm.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert all(name.startswith(("body.", "learner.")) for name in moved), moved


CHECKS = [
    training.meta_device,
    training.dtypes,
    training.state,
    predicting.episodes_apart,
    predicting.inference,
    predicting.support_order,
    predicting.class_labels,
    predicting.query_targets,
]


@pytest.mark.parametrize("kind", [PCAFeatures, AutoencoderFeatures])
@pytest.mark.parametrize("head", HEADS[1:])  # the first is what the kit takes by itself
def test_each_head_conforms(kind: Any, head: str) -> None:
    hp = kind.hyperparameters(head=head, width=8)
    subject = AlgorithmSubject(entry=None, cls=kind, hp=hp)  # type: ignore[arg-type]
    passed = []
    for check in CHECKS:
        try:
            check(subject)
        except NotApplicableError:
            continue
        passed.append(check)
    skipped = {predicting.query_targets} if head == "ridge" else set()
    skipped |= {predicting.class_labels} if head == "maml" else set()
    assert set(passed) == set(CHECKS) - skipped
