"""Task mapping: symmetries of f, known optima of its losses, what is collected and measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, Support, Targets
from metabench.api.phases import Collect, Learn, Measure
from metabench.api.recipe import Recipe
from metabench.engine.feed import TrainingData
from metabench.engine.tasks import TaskFeed
from metabench.engine.train import TrainingResult, planned_phases, train
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.task_mapping.set_network import SetNetwork
from metabench_plugins.algorithms.task_mapping.task_mapping import (
    TaskMapping,
    TaskMappingHyperparameters,
)

SMALL = {"width": 16, "hidden": 6, "network_steps": 5}
TARGETS = pytest.mark.parametrize("target", ["head", "network"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context(step: int = 0) -> Context:
    return Context("train", EpisodeRandom(b"task mapping key", [step]), step, 1)


def made(lab, recipe: Recipe | None = None, **settings: Any) -> Any:
    hp = TaskMappingHyperparameters(**{**SMALL, **settings})
    return lab.make(TaskMapping, hp, backbone=lab.SmoothConv, recipe=recipe)


def stirred(algorithm: Algorithm) -> Algorithm:
    """With random weights everywhere: layers that start at zero would hide what is behind them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.add_(0.2 * noise)
    return algorithm


@torch.no_grad()
@TARGETS
def test_f_is_invariant_to_order_and_equivariant_to_labels(lab, target: str) -> None:
    """With classes of different sizes, and padding; for any permutation of either."""
    algorithm = stirred(made(lab.double(), target=target, layers=2))
    labels = torch.tensor([[0, 0, 1, 2, 2, 2, 3], [3, 1, 1, 0, 2, 0, 0]])
    items, mask = drawn(2, 7, 36), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 6] = False
    generator = torch.Generator().manual_seed(1)
    support = Support(Items(items, mask), Targets(labels, mask), 4)
    expected = algorithm.adapt(support, context())
    for _ in range(5):
        order, names = (torch.randperm(size, generator=generator) for size in (7, 4))
        turned = Support(
            Items(items[:, order], mask[:, order]),
            Targets(names[labels][:, order], mask[:, order]),
            4,
        )
        found = algorithm.adapt(turned, context())
        torch.testing.assert_close(found["head"][:, names], expected["head"], rtol=0, atol=1e-13)
        if target == "network":
            torch.testing.assert_close(found["hidden"], expected["hidden"], rtol=0, atol=1e-13)
    # What is in the padding doesn't matter, and items do.
    padded = items.clone()
    padded[1, 6] = 100
    same = algorithm.adapt(Support(Items(padded, mask), Targets(labels, mask), 4), context())
    torch.testing.assert_close(same, expected)
    padded[0, 6] = 100
    other = algorithm.adapt(Support(Items(padded, mask), Targets(labels, mask), 4), context())
    assert not torch.allclose(other["head"][0, 0], expected["head"][0, 0])


def regression_examples(noise: float) -> dict[str, Tensor]:
    """200 tasks of 3 classes and 2 items; heads are linear in centred class means, and noise."""
    pool = drawn(200, 3, 2, 36)
    means = pool.mean(2)
    centred = means - means.mean(1, keepdim=True)
    head = centred @ drawn(36, 37, seed=1) + noise * drawn(200, 3, 37, seed=2)
    head = head - head.mean(1, keepdim=True)
    return {"pool": pool, "real": torch.ones(200, 3, 2, dtype=torch.bool), "head": head}


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_without_layers_the_squared_error_reaches_least_squares(lab, noise: float) -> None:
    """Where the conditional mean is linear: its error is that of NumPy's, and its map."""
    algorithm = made(lab.double(), layers=0, width=40, loss="squared-error")
    examples = regression_examples(noise)
    algorithm.scale(examples)
    weights = list(algorithm.mapping.parameters())
    optimizer = torch.optim.LBFGS(
        weights, max_iter=600, history_size=50, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = algorithm.mapping_loss(examples, 2, context())
        loss.backward()
        return loss

    optimizer.step(step)
    means = examples["pool"].mean(2)
    x = (means - means.mean(1, keepdim=True)).flatten(0, 1).numpy()
    y = examples["head"].flatten(0, 1).numpy()
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    error = float(np.square(x @ best - y).mean() / np.square(y).mean())
    loss = float(algorithm.mapping_loss(examples, 2, context()).detach())
    assert loss == pytest.approx(error, rel=1e-3, abs=1e-5)
    asked = drawn(1, 3, 36, seed=9)
    with torch.no_grad():
        found = algorithm.mapped(asked, torch.eye(3, dtype=torch.bool)[None])["head"][0]
    centred = (asked - asked.mean(1, keepdim=True))[0].numpy()
    np.testing.assert_allclose(found, centred @ best, atol=0.02 * np.abs(y).max())


@TARGETS
def test_the_losses_are_what_they_say(lab, target: str) -> None:
    """In plain loops over tasks and classes, each with its own support set of a pool of four."""
    lab = lab.double()
    examples = {"pool": drawn(3, 2, 4, 36), "real": torch.ones(3, 2, 4, dtype=torch.bool)}
    examples["real"][1, 0, 2:] = False
    examples["real"][2, 1, 1] = False
    wide = 37 if target == "head" else 7
    examples["head"] = drawn(3, 2, wide, seed=1)
    if target == "network":
        examples["hidden"] = drawn(3, 6, 37, seed=2)
    found = {}
    for loss in ("squared-error", "cross-entropy", "both"):
        algorithm = stirred(made(lab, target=target, loss=loss))
        algorithm.scale(examples)
        found[loss] = float(algorithm.mapping_loss(examples, 2, context()).detach())
    keys = context().rng.uniform(3, 2, 4)[0].masked_fill(~examples["real"], -1)
    squared, entropies, units = 0.0, [], {}
    names = [name for name in ("head", "hidden") if name in examples]
    for name in names:
        mean = examples[name].mean(0) if name == "hidden" else 0
        units[name] = float((examples[name] - mean).square().mean())
    for b in range(3):
        chosen = [sorted(range(4), key=lambda m: -float(keys[b, c, m]))[:2] for c in range(2)]
        known = torch.cat([examples["pool"][b, c][rows] for c, rows in enumerate(chosen)])
        support = Support(Items(known[None]), Targets(torch.tensor([[0, 0, 1, 1]])), 2)
        state = algorithm.adapt(support, context())
        for name in names:
            off = (state[name][0] - examples[name][b]).square().mean()
            squared += float(off.detach()) / units[name] / 3
        for c in range(2):
            for m in range(4):
                if m in chosen[c] or not examples["real"][b, c, m]:
                    continue
                query = Items(examples["pool"][b, c, m].view(1, 1, 36))
                logits = algorithm.predict(state, query, context())[0]
                entropies.append(float(F.cross_entropy(logits, torch.tensor([c])).detach()))
    assert len(entropies) == 12 - 3
    assert found["squared-error"] == pytest.approx(squared)
    assert found["cross-entropy"] == pytest.approx(sum(entropies) / len(entropies))
    assert found["both"] == pytest.approx(found["squared-error"] + found["cross-entropy"])


def phase_of(algorithm: Any, kind: type, recipe: Recipe) -> Any:
    [phase] = [p for p in planned_phases(algorithm, recipe, 0) if isinstance(p, kind)]
    return phase


@torch.no_grad()
@TARGETS
def test_what_is_collected_is_of_whole_classes(lab, target: str) -> None:
    """phi* is that of all items of the classes, the pool some of them, under their own class."""
    lab = lab.double().with_protocol(ways=3, shots=2)
    recipe = Recipe(steps=100, batch_size=64)
    algorithm = made(lab, recipe, target=target, pool=5, tasks=16)
    phase = phase_of(algorithm, Collect, recipe)
    assert (phase.recipe.steps, phase.recipe.meta_batch, phase.whole_classes) == (1, 16, True)
    bank = lab.banks["train"]
    feed = TaskFeed(algorithm, phase, TrainingData(lab.store("train"), lab.protocol), 0)
    tasks = feed.tasks(0)
    rng = EpisodeRandom(feed.key, tasks.numbers)
    made_of = phase.fn(tasks.batch, Context("train", rng, 0, 1))
    assert made_of["pool"].shape == (16, 3, 7, 36)
    assert made_of["real"].all()
    whole, items = [], {}
    for c in range(3):
        number = int(tasks.batch.classes[0, c])
        own = np.arange(bank.offsets[number], bank.offsets[number + 1])
        whole.append(algorithm.embed(torch.from_numpy(bank.items(own)).double() / 255))
        off = torch.cdist(made_of["pool"][0, c], whole[-1]).min(1)
        assert float(off.values.max()) < 1e-5
        items[c] = set(off.indices.tolist())
    assert all(len(places) == 7 for places in items.values())
    member = torch.eye(3, dtype=torch.bool).repeat_interleave(len(whole[0]), 0)[None]
    expected = algorithm.solution(torch.cat(whole)[None], member)
    for name, value in expected.items():
        torch.testing.assert_close(made_of[name][:1], value, rtol=1e-5, atol=1e-7)


def test_a_small_class_is_padded_in_the_pool(lab) -> None:
    algorithm = made(lab.double(), pool=4)
    labels = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    features = torch.arange(10.0).double().view(1, 10, 1).expand(1, 10, 36)
    batch = lab.batch(1)._replace(
        support=Support(Items(features[:, :2]), Targets(torch.tensor([[0, 1]])), 2),
        queries=Items(features),
        query_targets=Targets(labels),
    )
    found = algorithm.solve(batch, context())
    assert found["real"].tolist() == [[[True, True, True, True, False], [True] * 5]]
    assert set(found["pool"][0, 0, :4, 0].tolist()) <= {0.0, 1.0, 2.0}
    assert set(found["pool"][0, 1, :, 0].tolist()) <= {1.0, *range(3, 10)}


def test_there_are_no_more_tasks_than_are_drawn(lab) -> None:
    for recipe, tasks, steps in ((Recipe(steps=3, batch_size=8), 1000, 2), (Recipe(steps=0), 9, 0)):
        algorithm = made(lab, recipe, tasks=tasks)
        assert phase_of(algorithm, Collect, recipe).recipe.steps == steps
        assert phase_of(algorithm, Learn, recipe).recipe.steps == recipe.steps
        assert phase_of(algorithm, Measure, recipe).recipe.steps == steps


def learned(lab, algorithm: Any, recipe: Recipe) -> TrainingResult:
    data = TrainingData(lab.store("train"), lab.protocol)
    data.held_out = lambda: lab.store("validation")
    return train(algorithm, recipe, data, 0)


@TARGETS
def test_it_learns_what_generalises_to_other_classes(real_lab, target: str) -> None:
    """Nearer to phi* than an untrained f and than the mean phi*, and better as a classifier."""
    recipe = Recipe(steps=100, batch_size=32, lr=3e-3, optimizer="adamw", weight_decay=1.0)
    settings = {"target": target, "tasks": 96, "pretrain_ratio": 1.0, "measured_tasks": 32}
    settings |= {"width": 48, "network_steps": 20}
    algorithm = made(real_lab, recipe, **settings)
    result = learned(real_lab, algorithm, recipe)
    figures = result.figures
    assert figures.keys() == {
        f"{who}_{what}" for who in ("mapped", "finetuned") for what in ("error", "accuracy")
    } | {"optimum_accuracy"}
    assert figures["optimum_accuracy"] > figures["mapped_accuracy"] + 0.1
    assert figures["mapped_error"] < 0.95

    batch = held_out_tasks(real_lab, algorithm, recipe)
    after = algorithm.compare(batch, context())
    solved = solutions(real_lab, algorithm, batch)
    mean_phi = {
        name: value.mean(0)
        for name, value in solved_in_training(real_lab, algorithm, recipe).items()
    }
    off = sum((solved[n] - mean_phi[n]).square().sum((1, 2)) for n in solved)
    with torch.no_grad():
        found = algorithm.mapped(batch.support.items.data, class_membership(batch.support))
    nearer = sum((solved[n] - found[n]).square().sum((1, 2)) for n in solved)
    assert float(nearer.mean()) < 0.95 * float(off.mean())

    untrained = made(real_lab, recipe, **settings)
    untrained.backbone.load_state_dict(algorithm.backbone.state_dict())
    for name, value in algorithm.named_buffers():  # all that is known but for f itself
        untrained.get_buffer(name).copy_(value)
    before = untrained.compare(batch, context())
    assert float(before["mapped_error"].mean()) > float(after["mapped_error"].mean()) + 0.05
    assert float(after["mapped_accuracy"].mean()) > float(before["mapped_accuracy"].mean()) + 0.05


def held_out_tasks(lab, algorithm: Any, recipe: Recipe) -> Any:
    phase = phase_of(algorithm, Measure, recipe)
    data = TrainingData(lab.store("validation"), lab.protocol)
    return TaskFeed(algorithm.eval(), phase, data, 7).tasks(0).batch


def solved_in_training(lab, algorithm: Any, recipe: Recipe) -> dict[str, Tensor]:
    phase = phase_of(algorithm, Collect, recipe)
    data = TrainingData(lab.store("train"), lab.protocol)
    return solutions(lab, algorithm, TaskFeed(algorithm, phase, data, 0).tasks(0).batch)


def solutions(lab, algorithm: Any, batch: Any) -> dict[str, Tensor]:
    queries = Support(batch.queries, batch.query_targets, batch.support.ways)
    features = torch.cat([batch.support.items.data, batch.queries.data], 1)
    member = torch.cat([class_membership(batch.support), class_membership(queries)], 1)
    found: dict[str, Tensor] = algorithm.solution(features, member)
    return found


def test_it_trains_with_other_ways_and_shots_than_it_is_tested_with(lab) -> None:
    recipe = Recipe(steps=3, ways=7, shots=3, batch_size=8)
    algorithm = made(lab, recipe, tasks=16, measured_tasks=0)
    result = learned(lab, algorithm, recipe)
    a_class = int(lab.banks["train"].class_sizes[0])
    assert result.items == 16 * 7 * a_class + 3 * 8 + 12 * 8
    support, queries, _, _ = lab.batch(2)
    with torch.no_grad():
        assert lab.logits(algorithm, support, queries).shape == (2, 25, 5)


def test_layers_of_f_start_without_effect() -> None:
    """Training begins with what is linear in the class means."""
    torch.manual_seed(0)
    network = SetNetwork(4, 8, 2, 5, 6).double()
    member = torch.eye(3, dtype=torch.bool).repeat_interleave(2, 0)[None]
    one, other = drawn(1, 6, 4), drawn(1, 6, 4, seed=1)
    with torch.no_grad():
        for a, b, c in zip(
            network(one, member),
            network(other, member),
            network((one + other) / 2, member),
            strict=True,
        ):
            torch.testing.assert_close((a + b) / 2, c)
        plain = SetNetwork(4, 8, 2, 5, 0)
    assert plain(one.float(), member)[1] is None


@TARGETS
def test_f_learns_and_the_backbone_stays(lab, target: str) -> None:
    """Weight decay too leaves alone what no gradient reaches."""
    recipe = Recipe(steps=3, batch_size=8, optimizer="adamw", weight_decay=1.0)
    algorithm = made(lab, recipe, target=target, tasks=16, pretrain_ratio=0.0, measured_tasks=0)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    learned(lab, algorithm, recipe)
    for name, value in algorithm.state_dict().items():
        fixed = name.startswith("backbone.") or name == "start"
        assert torch.equal(value, before[name]) == fixed, name
