"""Transductive fine-tuning against PyTorch's own modules, autograd and Adam."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench.api.recipe import Recipe
from metabench.engine.build import training_bank
from metabench.engine.feed import TrainingData
from metabench.engine.gather import ItemStore
from metabench.engine.train import train
from metabench_plugins.algorithms.adam import adam, no_moments
from metabench_plugins.algorithms.transductive.transductive_finetuning import (
    TransductiveFinetuning,
    TransductiveFinetuningHyperparameters,
)
from metabench_plugins.algorithms.transfer.baseline import Baseline

SHORT = Recipe(steps=6, batch_size=32)


def make(lab: Any, **settings: Any) -> Any:
    hp = TransductiveFinetuningHyperparameters(**settings)
    algorithm = lab.make(TransductiveFinetuning, hp, backbone=lab.SmoothConv)
    for name, value in algorithm.named_buffers():  # not those of a network that saw nothing
        if name.endswith("running_mean"):
            value.add_(0.1)
    return algorithm


def plainly(algorithm: Any, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """One task by modules, autograd and PyTorch's Adam, in evaluation mode."""
    hp, network = algorithm.hp, copy.deepcopy(algorithm).eval()

    def embed(x: Tensor) -> Tensor:
        z = network.backbone(x)
        if hp.representation == "logits":
            z = torch.relu(network.classifier(z))
        return z / z.norm(dim=1, keepdim=True)

    z = embed(support).detach()
    means = torch.stack([z[labels == n].mean(0) for n in range(int(labels.max()) + 1)])
    head = nn.Linear(z.shape[1], len(means)).double()
    head.weight.data = means / means.norm(dim=1, keepdim=True)
    head.bias.data.zero_()
    tuned = [*head.parameters(), *(network.parameters() if hp.adapted == "network" else [])]
    optimizer = torch.optim.Adam(tuned, lr=hp.inner_lr)
    with torch.enable_grad():
        for _ in range(hp.inner_steps):
            optimizer.zero_grad()
            uncertainty = torch.distributions.Categorical(logits=head(embed(queries))).entropy()
            loss = F.cross_entropy(head(embed(support)), labels)
            (loss + hp.entropy_weight * uncertainty.mean()).backward()
            optimizer.step()
    return head(embed(queries)).detach()


@pytest.mark.parametrize("adapted", ["network", "head"])
@pytest.mark.parametrize("representation", ["logits", "features"])
@torch.no_grad()
def test_it_descends_support_loss_and_query_entropy(lab, adapted: str, representation: str) -> None:
    lab = lab.double().with_protocol(shots=2)
    algorithm = make(
        lab,
        adapted=adapted,
        representation=representation,
        inner_steps=4,
        inner_lr=0.01,
        entropy_weight=0.7,
    )
    support, queries, _, _ = lab.batch(2)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        expected = plainly(
            algorithm, support.items.data[b], support.targets.values[b], queries.data[b]
        )
        torch.testing.assert_close(logits[b], expected, rtol=1e-6, atol=1e-8)
    start = lab.logits(make(lab, inner_steps=0, representation=representation), support, queries)
    assert (logits - start).abs().max() > 0.01


@torch.no_grad()
def test_without_steps_logits_are_cosines(lab) -> None:
    """The support-based initialisation: of embeddings with class means."""
    lab = lab.double().with_protocol(shots=3)
    algorithm = make(lab, inner_steps=0)
    support, queries, _, _ = lab.batch(2)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        known, asked = (algorithm(x.data[b]) for x in (support.items, queries))
        labels = support.targets.values[b]
        means = torch.stack([known[labels == n].mean(0) for n in range(5)])
        cosines = F.cosine_similarity(asked[:, None], means[None], dim=-1)
        torch.testing.assert_close(logits[b], cosines)


@torch.no_grad()
def test_easyfsl_begins_alike_and_moves_prototypes_only(lab, easyfsl_predicts) -> None:
    """Its features stay as they are, and it goes by distances: one shot, length 1, the same order.

    So what is compared beyond the start is the paper's objective, see above.
    """
    lab = lab.double()
    algorithm = make(lab, inner_steps=0)
    support, queries, _, _ = lab.batch(2)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        known, asked = (algorithm(x.data[b]) for x in (support.items, queries))
        distances = easyfsl_predicts(
            "TransductiveFinetuning", known, support.targets.values[b], asked, fine_tuning_steps=0
        )
        torch.testing.assert_close(2 - 2 * logits[b], distances.square())


@pytest.mark.parametrize("batch_norm", ["running", "support", "support+1", "batch"])
@torch.no_grad()
def test_the_objective_falls_whatever_batch_norm_does(lab, batch_norm: str) -> None:
    lab = lab.double()
    support, queries, _, _ = lab.batch(2)

    def entropy_after(steps: int) -> Tensor:
        algorithm = make(
            lab, batch_norm=batch_norm, inner_steps=steps, inner_lr=3e-3, entropy_weight=5.0
        )
        logits = lab.logits(algorithm, support, queries)
        return torch.distributions.Categorical(logits=logits).entropy().mean(1)

    assert (entropy_after(10) < entropy_after(0)).all()


@torch.no_grad()
def test_queries_matter_by_their_entropy(lab) -> None:
    """Without it each query is predicted by itself, as inductive fine-tuning would."""
    lab = lab.double()
    common = {"inner_steps": 3, "inner_lr": 0.01}
    assert lab.dependence(make(lab, entropy_weight=0.0, **common)) == ""
    assert lab.dependence(make(lab, **common)) != ""


def test_adam_is_pytorchs() -> None:
    rng = torch.Generator().manual_seed(0)
    start = {n: torch.randn(3, 2, generator=rng, dtype=torch.float64) for n in "ab"}
    grads = [{n: torch.randn(3, 2, generator=rng).double() for n in "ab"} for _ in range(20)]
    leaves = {n: value.clone().requires_grad_() for n, value in start.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=0.03)
    params, moments, update = start, no_moments(start), adam(0.03)
    for t, slopes in enumerate(grads):
        params, moments = update(params, slopes, moments, t)
        for name, leaf in leaves.items():
            leaf.grad = slopes[name].clone()
        optimizer.step()
    for name, leaf in leaves.items():
        torch.testing.assert_close(params[name], leaf.detach(), rtol=1e-12, atol=1e-12)


class Kept:
    """Shared phases in memory."""

    tensors: dict[str, Tensor] | None = None

    def note(self, phase: Any) -> None:
        self.noted = phase.name

    def find(self, phase: Any) -> dict[str, Tensor] | None:
        return self.tensors

    def publish(self, phase: Any, tensors: dict[str, Tensor], curve: list[Any]) -> None:
        self.tensors = tensors


def test_it_takes_backbone_and_classifier_of_the_shared_pretraining(lab) -> None:
    shelf, bank = Kept(), training_bank(lab.banks["train"], SHORT, lab.protocol)
    trained = {}
    logits = TransductiveFinetuningHyperparameters(representation="logits")
    for kind, hp in ((Baseline, None), (TransductiveFinetuning, logits)):
        algorithm = lab.make(kind, hp, recipe=SHORT, seed=3)
        store = ItemStore(bank, algorithm.problem.item, torch.device("cpu"))
        train(algorithm, SHORT, TrainingData(store, lab.protocol), seed=3, shared=shelf)
        trained[kind] = algorithm
    taken = trained[TransductiveFinetuning]
    assert torch.equal(taken.classifier.weight, shelf.tensors["classifier.weight"])
    for name, value in trained[Baseline].backbone.state_dict().items():
        assert torch.equal(taken.backbone.state_dict()[name], value)
