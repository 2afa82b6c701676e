"""Principal components against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from metabench import Fit, ItemBatch, ItemSpec, Recipe, UsageError
from metabench_plugins.algorithms.unsupervised.pca_features import (
    PCAFeatures,
    PCAFeaturesHyperparameters,
    moments,
)
from metabench_plugins.backbones.conv4 import Conv4Hyperparameters
from metabench_plugins.backbones.identity import Identity
from metabench_plugins.backbones.mlp import MLP

Lab = Any


def drawings(lab: Lab, count: int = 500) -> Tensor:
    """(n, 1, 28, 28) of all classes, in the lab's precision."""
    store = lab.store("train")
    data: Tensor = store.gather(np.linspace(0, store.bank.n_items - 1, count).astype(int))
    return data.to(lab.dtype)


def fitted(lab: Lab, data: Tensor, **settings: Any) -> PCAFeatures:
    """Over Identity, unless the settings say otherwise; handed over in uneven batches."""
    backbone = settings.pop("backbone", Identity)
    hp = PCAFeaturesHyperparameters(**{"components": 10, **settings})
    algorithm: PCAFeatures = lab.make(PCAFeatures, hp, backbone=backbone)
    with torch.no_grad():
        algorithm.fit(
            (ItemBatch(part, None) for part in data.split([100, 1, len(data) - 101])),
            lab.context("train"),
        )
    return algorithm


@torch.no_grad()
@pytest.mark.parametrize("backbone", [Identity, "smooth"])
def test_components_and_their_variances_are_scikit_learns(lab: Lab, backbone: Any) -> None:
    lab = lab.double()
    backbone = lab.SmoothConv if backbone == "smooth" else backbone
    data = drawings(lab)
    plain = fitted(lab, data, backbone=backbone)
    white = fitted(lab, data, backbone=backbone, whiten=True)
    features = plain.backbone(data).numpy()
    for algorithm in (plain, white):
        expected = PCA(10, whiten=algorithm.hp.whiten, svd_solver="full").fit(features)
        np.testing.assert_allclose(algorithm.mean, expected.mean_, atol=1e-12)
        np.testing.assert_allclose(algorithm.variances, expected.explained_variance_, rtol=1e-9)
        sign = np.sign((algorithm.components.numpy() * expected.components_).sum(1))
        turned = sign[:, None] * expected.components_
        np.testing.assert_allclose(algorithm.components, turned, atol=1e-7)
        found = algorithm.code(data).numpy()
        np.testing.assert_allclose(found, sign * expected.transform(features), atol=1e-7)
        assert (
            algorithm.components.gather(1, algorithm.components.abs().argmax(1)[:, None]) > 0
        ).all()


def test_the_mean_and_covariance_keep_their_digits_far_from_the_origin() -> None:
    rows = 1e6 + torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).double()
    mean, covariance = moments(iter(rows.split(7)))
    np.testing.assert_allclose(covariance, np.cov(rows.numpy().T), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(mean, rows.numpy().mean(0), rtol=1e-14)


@torch.no_grad()
def test_the_map_of_cnn_is_the_reconstruction(lab: Lab) -> None:
    lab = lab.double()
    data = drawings(lab)
    algorithm = fitted(lab, data, head="cnn", whiten=True)
    expected = PCA(10, svd_solver="full").fit(data.flatten(1))
    again = expected.inverse_transform(expected.transform(data.flatten(1).numpy()))
    seen = algorithm.code_map(data)
    assert seen.shape == data.shape
    np.testing.assert_allclose(seen.flatten(1), again, atol=1e-9)


def test_the_maps_of_a_backbone_keep_their_shape(lab: Lab) -> None:
    hp = PCAFeaturesHyperparameters(head="cnn", components=4)
    assert lab.make(PCAFeatures, hp).map_shape == (8, 2, 2)
    pooled = Conv4Hyperparameters(width=8, downsample="stride", pooling="mean")
    with pytest.raises(UsageError, match="needs maps, and backbone conv4") as caught:
        lab.make(PCAFeatures, hp, backbone_hp=pooled)
    assert "another head" in caught.value.hint
    with pytest.raises(UsageError, match="needs maps, and backbone mlp"):
        lab.make(PCAFeatures, hp, backbone=MLP)


@torch.no_grad()
def test_fewer_items_than_components_leave_nothing_infinite(lab: Lab) -> None:
    algorithm = fitted(lab.double(), drawings(lab.double(), 120), components=300, whiten=True)
    seen = algorithm.code(drawings(lab.double(), 300))
    assert torch.isfinite(seen).all()


def test_it_is_fitted_on_all_training_items_without_labels(lab: Lab) -> None:
    algorithm: PCAFeatures = lab.make(PCAFeatures, backbone=Identity)
    (phase,) = algorithm.phases(Recipe())
    assert isinstance(phase, Fit)
    assert not phase.labels
    lab.train(algorithm, Recipe(steps=0))
    bank = lab.banks["train"]
    expected = np.asarray(bank.data).reshape(bank.n_items, -1).mean(0) / 255
    np.testing.assert_allclose(algorithm.mean, expected, atol=1e-6)


def test_a_covariance_that_is_too_large_is_refused(lab: Lab) -> None:
    problem = lab.make(PCAFeatures, backbone=Identity).problem
    wide = Identity(ItemSpec("image", (3, 84, 84)), Identity.hyperparameters())
    with pytest.raises(UsageError, match="21168 x 21168"):
        PCAFeatures(wide, PCAFeaturesHyperparameters(), problem)
