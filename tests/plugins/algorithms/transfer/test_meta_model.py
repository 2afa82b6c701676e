"""The meta-model: its meta-loss in plain loops, its tasks, and why they share no classifier."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.recipe import Recipe
from metabench.engine.feed import TrainingData
from metabench.engine.train import planned_phases, train
from metabench.errors import UsageError
from metabench_plugins.algorithms.transfer import meta_model
from metabench_plugins.algorithms.transfer.baseline import Baseline
from metabench_plugins.algorithms.transfer.meta_model import (
    MetaModel,
    MetaModelHyperparameters,
    TaskClassifiers,
    mean_over_tasks,
)
from metabench_plugins.backbones.identity import Identity


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_meta_loss_is_a_mean_over_tasks_of_means_over_items() -> None:
    """The last task has no item in the batch; items 3 and 6 are in no task."""
    tasks = torch.tensor([[4, 0, 2], [2, 5, 1], [0, 1, 4], [7, 8, 9]])
    classes = torch.tensor([0, 2, 4, 3, 4, 1, 6, 2])
    logits = drawn(8, 4, 3)
    losses = []
    for t, wanted in enumerate(tasks[:3].tolist()):
        own = [(i, wanted.index(c)) for i, c in enumerate(classes.tolist()) if c in wanted]
        scores = torch.stack([logits[i, t] for i, _ in own])
        losses.append(F.cross_entropy(scores, torch.tensor([label for _, label in own])))
    expected = sum(losses) / 3
    torch.testing.assert_close(mean_over_tasks(logits, classes, tasks), expected)
    # Of a batch without an item of any task it is zero, and so are its gradients.
    logits.requires_grad_()
    nothing = mean_over_tasks(logits, torch.full((8,), 6), tasks)
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert not logits.grad.any()


def module_of(algorithm: Algorithm, recipe: Recipe, seed: int = 0) -> Any:
    [phase] = planned_phases(algorithm, recipe, seed)
    return phase.module


def test_tasks_are_drawn_once_and_each_of_distinct_classes(lab) -> None:
    recipe = Recipe(ways=7)
    algorithm = lab.make(MetaModel, MetaModelHyperparameters(tasks=600), recipe=recipe)
    module = module_of(algorithm, recipe)
    assert module.tasks.shape == (600, 7)
    assert all(len(set(task)) == 7 for task in module.tasks.tolist())
    assert int(module.tasks.min()) >= 0
    # A class is missed once in 200,000 times.
    assert set(module.tasks.flatten().tolist()) == set(range(241))
    assert torch.equal(module_of(algorithm, recipe).tasks, module.tasks)
    assert not torch.equal(module_of(algorithm, recipe, seed=1).tasks, module.tasks)
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 600, 7)
    # What the classifiers learn is dropped: the algorithm itself is its backbone.
    assert algorithm.state_dict().keys() == {
        f"backbone.{k}" for k in algorithm.backbone.state_dict()
    }


def test_more_ways_than_classes_are_refused(lab) -> None:
    with pytest.raises(UsageError, match="242 ways can't be drawn from 241 training classes"):
        lab.make(MetaModel, recipe=Recipe(ways=242))


def trained(lab, algorithm: Algorithm, recipe: Recipe) -> list[dict[str, Any]]:
    data = TrainingData(lab.store("train"), lab.protocol)
    return train(algorithm, recipe, data, 0).curve


def test_the_meta_optimiser_warms_up_and_decays(lab) -> None:
    recipe = MetaModel.recipe.model_copy(update={"steps": 10, "warmup": 4, "lr": 0.8})
    assert (recipe.optimizer, recipe.schedule) == ("adamw", "linear")
    algorithm = lab.make(MetaModel, MetaModelHyperparameters(tasks=3), backbone=lab.SmoothConv)
    rates = [row["lr"] for row in trained(lab, algorithm, recipe.model_copy(update={"lr": 1e-3}))]
    up, down = [0.25, 0.5, 0.75, 1.0], [1 - done / 6 for done in range(6)]
    assert rates == pytest.approx([1e-3 * factor for factor in up + down])


class SharedHead(TaskClassifiers):
    """One classifier under all tasks."""

    def __init__(self, backbone: Any, tasks: Tensor) -> None:
        super().__init__(backbone, tasks)
        self.heads = torch.nn.Linear(backbone.feature_dim, tasks.shape[1])

    def forward(self, data: Any) -> Tensor:
        logits = self.heads(self.backbone(data))
        return logits.unsqueeze(1).expand(-1, len(self.tasks), -1)


def test_a_head_shared_under_permuted_labels_learns_the_uniform_prediction(
    lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss stays at log N, where heads of their own get far below, by the same training."""
    lab = lab.with_protocol(ways=3)
    recipe = Recipe(steps=150, batch_size=48, optimizer="adamw", lr=1e-2, schedule="linear")
    last = {}
    for kind in (TaskClassifiers, SharedHead):
        monkeypatch.setattr(meta_model, "TaskClassifiers", kind)
        algorithm = lab.make(MetaModel, MetaModelHyperparameters(tasks=40), backbone=lab.SmoothConv)
        losses = [row["loss"] for row in trained(lab, algorithm, recipe)]
        last[kind] = sum(losses[-20:]) / 20
    assert last[SharedHead] == pytest.approx(math.log(3), abs=0.05)
    assert last[TaskClassifiers] < math.log(3) - 0.2


def test_under_all_permutations_the_best_shared_head_is_uniform() -> None:
    """Exactly: the convex problem's optimum on given features is zero logits, a loss of log N."""
    features, classes = drawn(12, 4), torch.arange(12) % 3
    tasks = torch.tensor(list(itertools.permutations(range(3))))
    losses = {}
    for heads in (1, len(tasks)):
        weight = drawn(heads, 3, 4, seed=1).requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

        def loss(weight: Tensor = weight) -> Tensor:
            logits = torch.einsum("nd,tkd->ntk", features, weight.expand(len(tasks), -1, -1))
            return mean_over_tasks(logits, classes, tasks) + 1e-4 * weight.square().mean()

        def step(optimizer: Any = optimizer, loss: Any = loss) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss()
            value.backward()
            return value

        optimizer.step(step)
        losses[heads] = float(loss().detach())
        if heads == 1:
            assert float(weight.detach().abs().max()) < 1e-3
    assert losses[1] == pytest.approx(math.log(3), abs=1e-6)
    assert losses[6] < 0.9


@torch.no_grad()
def test_at_test_it_is_the_baseline_on_its_backbone(lab) -> None:
    recipe = Recipe(steps=3, batch_size=8)
    meta, baseline = lab.make(MetaModel, recipe=recipe), lab.make(Baseline, recipe=recipe)
    baseline.load_state_dict(meta.state_dict())
    support, queries, _, _ = lab.batch(2)
    expected = lab.logits(baseline, support, queries)
    assert torch.equal(lab.logits(meta, support, queries), expected)
    with torch.enable_grad():
        trained(lab, meta, recipe)
    assert not torch.allclose(lab.logits(meta, support, queries), expected, atol=1e-3)


def test_over_pixels_nothing_is_trained(lab) -> None:
    assert lab.make(MetaModel, backbone=Identity).phases(MetaModel.recipe) == []
