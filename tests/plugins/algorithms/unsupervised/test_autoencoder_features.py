"""The autoencoder: a linear one spans the principal components; one training for all heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from metabench import Batches, ItemBatch, ItemSpec, Recipe, UsageError
from metabench.engine.feed import TrainingData
from metabench.engine.train import planned_phases, train_shared_phase
from metabench.runner.bench import _module_digest
from metabench_plugins.algorithms.unsupervised.autoencoder_features import (
    Autoencoder,
    AutoencoderFeatures,
    AutoencoderFeaturesHyperparameters,
    ConvDecoder,
    reconstruction_loss,
)
from metabench_plugins.backbones.identity import Identity

Lab = Any
HEADS = ["centroid", "ridge", "mlp", "cnn", "rnn", "maml"]


def projection(columns: Tensor) -> Tensor:
    """Onto the span of the columns."""
    basis = torch.linalg.qr(columns).Q
    return basis @ basis.T


def test_a_linear_autoencoder_spans_the_principal_components() -> None:
    """Baldi and Hornik 1989: at the optimum both layers do, whatever the basis in the middle."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(8, 8, generator=generator).double() * torch.arange(1, 9)
    data = torch.randn(200, 8, generator=generator).double() @ mixed + 3
    torch.manual_seed(0)
    encoder = Identity(ItemSpec("vector", (8,)), Identity.hyperparameters())
    module = Autoencoder(encoder, nn.Linear(8, 3), nn.Linear(3, 8)).double()
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=3000,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
        history_size=50,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = reconstruction_loss(module, ItemBatch(data, None), None)  # type: ignore[arg-type]
        loss.backward()
        return loss

    optimizer.step(closure)
    best = PCA(3).fit(data.numpy())
    expected = projection(torch.from_numpy(best.components_.T))
    torch.testing.assert_close(
        projection(module.decoder.weight.detach()), expected, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        projection(module.bottleneck.weight.detach().T), expected, atol=1e-5, rtol=0
    )
    again = torch.from_numpy(best.inverse_transform(best.transform(data.numpy())))
    torch.testing.assert_close(
        closure().detach(), (again - data).square().mean(), rtol=1e-8, atol=0
    )


def make(lab: Lab, recipe: Recipe, **settings: Any) -> AutoencoderFeatures:
    hp = AutoencoderFeaturesHyperparameters(bottleneck=12, width=8, **settings)
    algorithm: AutoencoderFeatures = lab.make(AutoencoderFeatures, hp, recipe=recipe)
    return algorithm


class Shelf:
    """Keeps what is trained, and finds nothing."""

    def note(self, phase: Batches) -> None:
        pass

    def find(self, phase: Batches) -> None:
        return None

    def publish(self, phase: Batches, tensors: dict[str, Tensor], curve: Any) -> None:
        self.tensors = tensors


def test_one_training_serves_all_heads(lab: Lab) -> None:
    """The phase is the same to a cell's key, and trains the same weights, whatever the head."""
    recipe, digests, trained = Recipe(steps=2, batch_size=8, queries=2), set(), []
    for head in HEADS:
        algorithm = make(lab, recipe, head=head)
        phase = planned_phases(algorithm, recipe, seed=0)[0]
        assert isinstance(phase, Batches)
        assert phase.shared
        assert not phase.labels
        digests.add(_module_digest(phase.module))
        shelf = Shelf()
        train_shared_phase(
            algorithm, recipe, TrainingData(lab.store("train"), lab.protocol), 0, shelf
        )
        trained.append(shelf.tensors)
    assert len(digests) == 1
    for other in trained[1:]:
        assert other.keys() == trained[0].keys()
        assert all(torch.equal(value, trained[0][name]) for name, value in other.items())
    # What the module is made of is in the key.
    wider = AutoencoderFeaturesHyperparameters(bottleneck=13)
    phase = planned_phases(lab.make(AutoencoderFeatures, wider, recipe=recipe), recipe, seed=0)[0]
    assert isinstance(phase, Batches)
    assert _module_digest(phase.module) not in digests


@pytest.mark.parametrize("decoder", ["linear", "dense", "conv"])
def test_items_come_back_better_after_training(lab: Lab, decoder: str) -> None:
    recipe, shelf = Recipe(steps=30, batch_size=16, lr=3e-3), Shelf()
    algorithm = make(lab, recipe, decoder=decoder)
    data = TrainingData(lab.store("train"), lab.protocol)
    train_shared_phase(algorithm, recipe, data, 0, shelf)
    (phase,) = planned_phases(make(lab, recipe, decoder=decoder), recipe, seed=0)
    assert isinstance(phase, Batches)
    items, losses = ItemBatch(lab.batch(4).queries.data.flatten(0, 1), None), []
    for load in (False, True):
        if load:
            phase.module.load_state_dict(shelf.tensors)
        with torch.no_grad():
            losses.append(float(phase.loss(phase.module.eval(), items, lab.context("train"))))
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 9, 14), (2, 2, 2)])
def test_transposed_convolutions_cover_the_image(image: tuple[int, int, int]) -> None:
    decoder = ConvDecoder(5, (16, 2, 2), image)
    assert decoder(torch.randn(3, 5)).shape == (3, *image)


def test_what_has_no_maps_is_refused(lab: Lab) -> None:
    hp = AutoencoderFeaturesHyperparameters(decoder="conv")
    algorithm = lab.make(AutoencoderFeatures, hp, backbone=Identity)
    with pytest.raises(UsageError, match="backbone with maps, which identity hasn't"):
        algorithm.phases(Recipe())
    cnn = AutoencoderFeaturesHyperparameters(head="cnn")
    with pytest.raises(UsageError, match="head = 'cnn' needs maps, and backbone identity"):
        lab.make(AutoencoderFeatures, cnn, backbone=Identity)
