"""Reptile: its inner Adam against PyTorch's, its outer update against the paper's formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items, Support, Targets
from metabench.api.recipe import Recipe
from metabench.engine.norm import norm_mode
from metabench_plugins.algorithms.optimisation.reptile import Reptile, ReptileHyperparameters

Lab = Any


def training_lab(lab: Lab) -> Lab:
    """Episodes as Reptile trains on them: ten shots, no queries, in float64."""
    return lab.with_protocol(shots=10, queries=0).double()


def adam_in_sequence(
    algorithm: Any, batch: Any, orders: Tensor | None, optimizer: Any, mode: str = "fresh"
) -> list[list[Tensor]]:
    """Train the network on each task in turn by PyTorch's Adam, from the same weights each time.

    Returns the weights that each task reached; the optimiser is never reset.
    """
    parameters = optimizer.param_groups[0]["params"]
    theta = [p.detach().clone() for p in parameters]
    reached = []
    for task in range(len(batch.classes)):
        data, labels = batch.support.items.data[task], batch.support.targets.values[task]
        for step in range(algorithm.hp.inner_steps):
            chosen = slice(None) if orders is None else orders[task, step]
            optimizer.zero_grad()
            with norm_mode(algorithm, mode):
                F.cross_entropy(algorithm(data[chosen]), labels[chosen]).backward()
            optimizer.step()
        reached.append([p.detach().clone() for p in parameters])
        with torch.no_grad():
            for p, start in zip(parameters, theta, strict=True):
                p.copy_(start)
    return reached


def steps_of(lab: Lab, algorithm: Any, batch: Any) -> tuple[list[Tensor], float]:
    """The gradients that a training step leaves, and the loss that it returns."""
    algorithm.zero_grad()
    loss = algorithm.training_step(batch, lab.context("train", len(batch.classes)))
    return [p.grad.clone() for p in algorithm.parameters()], float(loss)


@pytest.mark.parametrize("beta1", [0.0, 0.5])
@pytest.mark.parametrize("inner_batch", [None, 10, 17])
def test_tasks_in_sequence_are_pytorchs_adam_whose_state_carries_on(
    lab: Lab, beta1: float, inner_batch: int | None
) -> None:
    lab = training_lab(lab)
    hp = ReptileHyperparameters(inner_lr=1e-2, inner_batch=inner_batch, beta1=beta1)
    ours, twin = [lab.make(Reptile, hp, backbone=lab.SmoothConv) for _ in range(2)]
    adam = torch.optim.Adam(twin.parameters(), lr=1e-2, betas=(beta1, 0.999))
    everything = lab.batch(6)
    for first in (0, 3):  # two meta-batches of three tasks
        batch = part(everything, slice(first, first + 3))
        orders = ours.mini_batches(batch.support, lab.context("train", 3))
        assert (orders is None) == (inner_batch is None)
        reached = adam_in_sequence(twin, batch, orders, adam)
        found, _ = steps_of(lab, ours, batch)
        named = zip(twin.named_parameters(), found, strict=True)
        for place, ((name, theta), step) in enumerate(named):
            mean = torch.stack([phi[place] for phi in reached]).mean(0)
            # The gradient of a bias before a batch norm is zero: Adam magnifies its rounding.
            noise = name in {"backbone.net.0.bias", "backbone.net.3.bias"}
            atol = 1e-7 if noise else 1e-12
            torch.testing.assert_close(step, theta.detach() - mean, rtol=1e-9, atol=atol)
    state = [adam.state[p] for p in twin.parameters()]
    second = torch.cat([s["exp_avg_sq"].flatten() for s in state])
    torch.testing.assert_close(ours.second_moments, second, rtol=1e-9, atol=1e-20)
    assert int(ours.adam_steps) == 6 * hp.inner_steps == int(state[0]["step"])
    if beta1:
        first_moments = torch.cat([s["exp_avg"].flatten() for s in state])
        torch.testing.assert_close(ours.first_moments, first_moments, rtol=1e-9, atol=1e-14)


def part(batch: Any, index: slice) -> Any:
    """Some of the episodes of a batch."""
    support = batch.support
    items, targets = Items(support.items.data[index]), Targets(support.targets.values[index])
    return batch._replace(
        support=Support(items, targets, support.ways),
        queries=Items(batch.queries.data[index]),
        query_targets=Targets(batch.query_targets.values[index]),
        classes=batch.classes[index],
    )


@pytest.mark.parametrize("epsilon", [1.0, 0.25])
def test_the_outer_update_goes_a_part_of_the_way_to_the_mean_of_the_tasks(
    lab: Lab, epsilon: float
) -> None:
    lab = training_lab(lab)
    ours, twin = [lab.make(Reptile, backbone=lab.SmoothConv) for _ in range(2)]
    batch = lab.batch(2)
    orders = ours.mini_batches(batch.support, lab.context("train", 2))
    adam = torch.optim.Adam(twin.parameters(), lr=ours.hp.inner_lr, betas=(0.0, 0.999))
    reached = adam_in_sequence(twin, batch, orders, adam)
    outer = torch.optim.SGD(ours.parameters(), lr=epsilon)
    steps_of(lab, ours, batch)
    outer.step()
    for place, (after, theta) in enumerate(zip(ours.parameters(), twin.parameters(), strict=True)):
        away = torch.stack([phi[place] - theta for phi in reached]).mean(0)
        torch.testing.assert_close(after, theta + epsilon * away, rtol=1e-9, atol=1e-12)


def test_every_task_at_test_starts_from_the_trained_state_and_leaves_none(lab: Lab) -> None:
    lab = lab.with_protocol(shots=4).double()
    hp = ReptileHyperparameters(inner_batch=7, inner_batch_test=6, inner_steps_test=9)
    algorithm = lab.make(Reptile, hp, backbone=lab.SmoothConv)
    algorithm.training_step(lab.batch(2, "train"), lab.context("train"))
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    batch = lab.batch(3)
    with torch.no_grad():
        state = algorithm.adapt(batch.support, lab.context("test", 3))
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, before[name]), name

    # The same by PyTorch's Adam, its state set to the trained one for each task.
    order = algorithm.mini_batches(batch.support, lab.context("test", 3))
    second = algorithm._unpacked(before["second_moments"])
    for task in range(3):
        twin = lab.make(Reptile, hp, backbone=lab.SmoothConv)
        twin.load_state_dict(before)
        adam = torch.optim.Adam(twin.parameters(), lr=hp.inner_lr, betas=(0.0, 0.999))
        for name, p in twin.named_parameters():
            adam.state[p] = {
                "step": torch.tensor(float(before["adam_steps"])),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": second[name].clone(),
            }
        data, labels = batch.support.items.data[task], batch.support.targets.values[task]
        for chosen in order[task]:
            adam.zero_grad()
            with norm_mode(twin, "fresh"):
                F.cross_entropy(twin(data[chosen]), labels[chosen]).backward()
            adam.step()
        for name, p in twin.named_parameters():
            torch.testing.assert_close(state["params"][name][task], p.detach())


def test_the_trained_state_of_adam_matters_at_test(lab: Lab) -> None:
    algorithm, batch = lab.make(Reptile), lab.batch(2)
    algorithm.training_step(lab.with_protocol(shots=10, queries=0).batch(2), lab.context("train"))
    with torch.no_grad():
        trained = algorithm.adapt(batch.support, lab.context())["params"]["head.weight"]
        algorithm.second_moments.zero_()
        algorithm.adam_steps.zero_()
        reset = algorithm.adapt(batch.support, lab.context())["params"]["head.weight"]
    assert (trained - reset).abs().max() > 1e-4


@given(
    size=st.integers(2, 12),
    batch=st.integers(1, 14),
    steps=st.integers(0, 9),
    stage=st.sampled_from(["train", "test"]),
)
@settings(max_examples=40, deadline=None)
def test_mini_batches_go_through_the_support_set_in_random_order_pass_after_pass(
    lab: Lab, size: int, batch: int, steps: int, stage: str
) -> None:
    hp = ReptileHyperparameters(
        inner_steps=max(steps, 1),
        inner_steps_test=max(steps, 1) if stage == "train" else steps,
        inner_batch=batch,
        inner_batch_test=batch,
    )
    with torch.device("meta"):  # only its settings are looked at
        algorithm = lab.make(Reptile, hp)
    support = Support(Items(None), Targets(torch.zeros(3, size, dtype=torch.int64)), 5)
    order = algorithm.mini_batches(support, lab.context(stage, 3))
    done = algorithm.inner_steps(lab.context(stage))
    if batch >= size or done == 0:
        assert order is None
        return
    assert order.shape == (3, done, batch)
    for stream in order.flatten(1).tolist():
        for start in range(0, len(stream), size):
            this_pass = stream[start : start + size]
            assert len(set(this_pass)) == len(this_pass)
            assert set(this_pass) <= set(range(size))
    again = algorithm.mini_batches(support, lab.context(stage, 3))
    assert torch.equal(again, order)


def test_the_order_of_a_task_depends_on_its_episode_only(lab: Lab) -> None:
    lab = lab.with_protocol(shots=10)
    algorithm, batch = lab.make(Reptile), lab.batch(3)
    together = algorithm.mini_batches(batch.support, lab.context("train", 3))
    assert together.shape == (3, 5, 10)
    assert torch.equal(together[0].flatten().sort().values, torch.arange(50))
    assert not torch.equal(together[0], together[1])
    key = b"k" * 16
    alone, others = (
        algorithm.mini_batches(
            part(batch, where).support, Context("train", EpisodeRandom(key, numbers))
        )
        for where, numbers in ((slice(1, 2), [41]), (slice(0, 3), [7, 41, 9]))
    )
    assert torch.equal(alone[0], others[1])


def test_adams_state_is_saved_with_the_weights(lab: Lab) -> None:
    algorithm, other = lab.make(Reptile), lab.make(Reptile)
    algorithm.training_step(lab.batch(2), lab.context("train"))
    saved = algorithm.state_dict()
    assert int(saved["adam_steps"]) == 10
    assert saved["second_moments"].numel() == sum(p.numel() for p in algorithm.parameters())
    assert float(saved["second_moments"].min()) >= 0 < float(saved["second_moments"].max())
    other.load_state_dict(saved)
    batch = lab.batch(2)
    with torch.no_grad():
        first, second = (lab.logits(a, batch.support, batch.queries) for a in (algorithm, other))
    assert torch.equal(first, second)
    assert "first_moments" not in saved  # with beta1 = 0 they are the gradient itself


def test_running_averages_follow_the_inner_mini_batches(lab: Lab) -> None:
    lab = training_lab(lab)
    hp = ReptileHyperparameters(batch_norm="running")
    ours, twin = [lab.make(Reptile, hp, backbone=lab.SmoothConv) for _ in range(2)]
    batch = lab.batch(2)
    orders = ours.mini_batches(batch.support, lab.context("train"))
    adam = torch.optim.Adam(twin.parameters(), lr=hp.inner_lr, betas=(0.0, 0.999))
    adam_in_sequence(twin, batch, orders, adam, mode="update")
    steps_of(lab, ours, batch)
    expected = twin.norm_buffers()
    assert expected
    for name, value in ours.norm_buffers().items():
        torch.testing.assert_close(value, expected[name])
        assert (value - value.mean()).abs().max() > 0


@pytest.mark.parametrize("option", ["support", "support+1", "batch"])
def test_other_options_leave_the_running_averages_alone(lab: Lab, option: str) -> None:
    algorithm = lab.make(Reptile, ReptileHyperparameters(batch_norm=option))
    before = {name: value.clone() for name, value in algorithm.norm_buffers().items()}
    algorithm.training_step(lab.batch(2), lab.context("train"))
    for name, value in algorithm.norm_buffers().items():
        assert torch.equal(value, before[name])


def test_the_logged_loss_is_that_of_each_tasks_last_mini_batch(lab: Lab) -> None:
    lab = training_lab(lab)
    hp = ReptileHyperparameters(inner_steps=1, inner_batch=None)
    algorithm, batch = lab.make(Reptile, hp, backbone=lab.SmoothConv), lab.batch(2)
    expected = []
    for task in range(2):
        with norm_mode(algorithm, "fresh"), torch.no_grad():
            logits = algorithm(batch.support.items.data[task])
        expected.append(F.cross_entropy(logits, batch.support.targets.values[task]))
    _, loss = steps_of(lab, algorithm, batch)
    assert loss == pytest.approx(float(torch.stack(expected).mean()))


def test_it_is_trained_by_the_engine_without_queries(lab: Lab) -> None:
    lab = lab.with_protocol(shots=5)
    algorithm = lab.make(Reptile)
    before = algorithm.head.weight.detach().clone()
    lab.train(algorithm, Reptile.recipe.model_copy(update={"steps": 3}))
    assert (algorithm.head.weight.detach() - before).abs().max() > 1e-4
    assert int(algorithm.adam_steps) == 15


def test_outer_adam_is_allowed_too(lab: Lab) -> None:
    algorithm = lab.make(Reptile)
    before = algorithm.head.weight.detach().clone()
    lab.train(algorithm, Recipe(steps=2, shots=10, queries=0, lr=1e-3, meta_batch=2))
    change = (algorithm.head.weight.detach() - before).abs()
    assert 1e-4 < float(change.max()) < 3e-3


def test_training_needs_an_inner_step() -> None:
    with pytest.raises(ValidationError):
        ReptileHyperparameters(inner_steps=0)
    assert ReptileHyperparameters(inner_steps_test=0).inner_steps_test == 0
