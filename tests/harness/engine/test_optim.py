"""The outer optimiser: its schedules against PyTorch's, and its state as named tensors."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from metabench.api.recipe import Recipe
from metabench.engine.optim import (
    load_optimizer_tensors,
    lr_at,
    make_optimizer,
    optimizer_tensors,
    set_lr,
)

STEPS = 30
SCHEDULERS = {
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.3),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedules_are_those_of_pytorch(schedule: str) -> None:
    recipe = Recipe(steps=STEPS, schedule=schedule, lr=0.2, decay_every=7, decay_factor=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = SCHEDULERS[schedule](optimizer)
    for step in range(STEPS):
        assert lr_at(recipe, step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_climbs_to_the_rate_from_which_the_schedule_starts(schedule: str) -> None:
    recipe = Recipe(steps=STEPS, schedule=schedule, lr=0.2, warmup=4)
    rates = [lr_at(recipe, step) for step in range(STEPS)]
    assert rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    rest = Recipe(steps=STEPS - 4, schedule=schedule, lr=0.2)
    assert rates[4:] == pytest.approx([lr_at(rest, step) for step in range(STEPS - 4)])


RECIPES = {
    "adam": Recipe(optimizer="adam", lr=0.03, weight_decay=0.1),
    "adamw": Recipe(optimizer="adamw", lr=0.03, weight_decay=0.1),
    "sgd": Recipe(optimizer="sgd", lr=0.03),
    "momentum": Recipe(optimizer="sgd", lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.1),
}
PYTORCH = {
    "adam": lambda p: torch.optim.Adam(p, 0.03, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.03, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, 0.03),
    "momentum": lambda p: torch.optim.SGD(p, 0.03, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def descend(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1, 12).view(4, 3) * (step + 1)
        module(inputs).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_means_pytorchs_optimizer(name: str) -> None:
    modules = []
    for make in (lambda p: make_optimizer(RECIPES[name], p), PYTORCH[name]):
        torch.manual_seed(0)
        modules.append(nn.Linear(3, 2))
        descend(modules[-1], make(modules[-1].parameters()), range(5))
    assert torch.equal(modules[0].weight, modules[1].weight)


@pytest.mark.parametrize("name", RECIPES)
def test_a_state_put_back_goes_on_to_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = make_optimizer(RECIPES[name], module.parameters())
    descend(module, optimizer, range(4))
    twin.load_state_dict(module.state_dict())
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    descend(module, optimizer, range(4, 8))

    other = make_optimizer(RECIPES[name], twin.parameters())
    load_optimizer_tensors(other, saved)
    descend(twin, other, range(4, 8))
    assert torch.equal(module.weight, twin.weight)
    assert torch.equal(module.bias, twin.bias)


def test_the_rate_is_set_for_all_parameters() -> None:
    optimizer = make_optimizer(Recipe(), nn.Linear(3, 2).parameters())
    set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]
