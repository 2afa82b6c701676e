"""The meta-gradient of every optimisation-based algorithm by finite differences, in each engine.

Each parameter that training changes is moved along a random direction: those of the network, and an
algorithm's own (learnt rates, layers that read a context). In float64, over a network that is
differentiable everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metabench.api.recipe import Recipe
from metabench.engine.lift import over_tasks
from metabench.engine.modes import using_engine
from metabench.plugins import load_registry
from metabench_plugins.algorithms.optimisation import ALGORITHMS

Lab = Any
SECOND_ORDER: dict[str, dict[str, Any]] = {
    "maml": {"inner_lr": 0.3, "inner_steps": 2},
    "anil": {"inner_lr": 0.3, "inner_steps": 2},
    "boil": {"inner_lr": 0.3, "inner_steps": 2},
    "meta-sgd": {"inner_lr": 0.3, "inner_steps": 2},
    "proto-maml": {"inner_lr": 0.05, "inner_steps": 2},
    "cavia": {"inner_lr": 1.0, "inner_steps": 2, "context_size": 7},
    "metagrad": {"inner_lr": 0.3, "inner_steps": 3, "hyper_lr": 0.5, "carry": 0.0},
    "adaptive-metagrad": {"inner_steps": 3, "hyper_lr": 2.0, "rule": "additive", "carry": 0.0},
    "maml++": {"inner_lr": 0.3, "inner_steps": 2, "first_order": 0.0, "multi_step": 0.5},
}
"""The gradient is that of the training loss: a line for each, its hyper-parameters."""
FIRST_ORDER: dict[str, dict[str, Any]] = {"fomaml": {"inner_lr": 0.3, "inner_steps": 2}}
"""The gradient is, by definition, that of the queries' loss at the adapted parameters."""
ELSEWHERE = {
    "imaml": "its gradient is that of the exact inner solution: test_imaml.py",
    "reptile": "its step descends no loss: test_reptile.py",
}
STEP = 1e-4
FEWEST = 1e-7  # of a slope that counts as one; a bias behind a batch norm has none
RECIPE = Recipe(steps=1, meta_batch=2, queries=2)


def test_every_optimisation_based_algorithm_has_its_meta_gradient_checked() -> None:
    names = {lazy.name for lazy in ALGORITHMS}
    assert names == {*SECOND_ORDER, *FIRST_ORDER, *ELSEWHERE}


def made(lab: Lab, name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The algorithm in training, and a batch of two tasks; weights not those of a new network."""
    kind = load_registry(strict=True).get("algorithm", name).load()
    lab = lab.with_protocol(ways=3, shots=2, queries=2).double()
    hp = kind.hyperparameters(**settings)
    algorithm = lab.make(kind, hp, backbone=lab.SmoothConv, recipe=RECIPE).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            if parameter.requires_grad:  # also of what starts at zero, or one, or all the same
                parameter += 0.05 * random_like(parameter, generator)
    return algorithm, lab.batch(2)


def in_training(lab: Lab) -> Any:
    """The first of ten meta-steps."""
    return lab.context("train", total=10)


def random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


def difference(at: Callable[[float], float]) -> float:
    """The slope at 0, with an error of order h^4."""
    up, down = at(STEP) - at(-STEP), at(2 * STEP) - at(-2 * STEP)
    return (8 * up - down) / (12 * STEP)


def slopes(lab: Lab, algorithm: Any, batch: Any) -> dict[str, tuple[Tensor, float]]:
    """By parameter: a direction, and how the training loss changes along it."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, parameter in algorithm.named_parameters():
        if not parameter.requires_grad:
            continue
        along, before = random_like(parameter, generator), parameter.detach().clone()

        def at(by: float, parameter: Any = parameter, start: Any = before, d: Any = along) -> float:
            with torch.no_grad():
                parameter.copy_(start + by * d)
            return float(algorithm.training_loss(batch, in_training(lab)).detach())

        found[name] = (along, difference(at))
        with torch.no_grad():
            parameter.copy_(before)
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, {**settings, "batch_norm": option}), id=f"{name}-{option}")
        for name, settings in SECOND_ORDER.items()
        for option in ("support", "batch")
    ],
)
def differentiated(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An algorithm, a batch, and the loss's slopes, which no engine has a part in."""
    algorithm, batch = made(lab, *request.param)
    return algorithm, batch, slopes(lab, algorithm, batch)


@pytest.mark.parametrize("engine", ["loop", "vmap", "mixed"])
def test_it_is_the_finite_difference_of_the_loss(
    lab: Lab, differentiated: Any, engine: Any
) -> None:
    algorithm, batch, expected = differentiated
    algorithm.zero_grad()
    with using_engine(engine):
        algorithm.training_step(batch, in_training(lab))
    for name, parameter in algorithm.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        along, slope = expected[name]
        found = 0.0 if parameter.grad is None else float((parameter.grad * along).sum())
        assert found == pytest.approx(slope, rel=1e-6, abs=1e-9), name
    moving = [name for name, (_, slope) in expected.items() if abs(slope) > FEWEST]
    still = expected.keys() - moving
    assert all(name.endswith(("net.0.bias", "net.3.bias")) or "rates" in name for name in still)


@pytest.mark.parametrize("engine", ["loop", "vmap", "mixed"])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_is_the_finite_difference_at_the_adapted_parameters(
    lab: Lab, name: str, engine: Any
) -> None:
    algorithm, batch = made(lab, name, FIRST_ORDER[name])
    with using_engine(engine):
        algorithm.training_step(batch, in_training(lab))
    with torch.no_grad():
        adapted = algorithm.adapt(batch.support, in_training(lab))["params"]
    generator = torch.Generator().manual_seed(0)
    for name_, parameter in algorithm.named_parameters():
        along = random_like(parameter, generator)

        def at(by: float, name_: str = name_, along: Tensor = along) -> float:
            """The queries' loss with all tasks' adapted parameters moved."""
            moved = {**adapted, name_: adapted[name_] + by * along}

            def state(phi: Any, data: Tensor) -> Any:
                return algorithm.task_state(phi, algorithm.norm_buffers(), data)

            with torch.no_grad():
                states = over_tasks(state, moved, batch.support.items.data)
                logits = algorithm.predict(states, batch.queries, in_training(lab))
                wanted = batch.query_targets.values.flatten()
                return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted))

        found = float((parameter.grad * along).sum())
        assert found == pytest.approx(difference(at), rel=1e-6, abs=1e-9), name_


def test_the_check_can_fail(lab: Lab) -> None:
    """MAML's second derivatives are no rounding: without them the differences disagree."""
    settings = SECOND_ORDER["maml"]
    maml, batch = made(lab, "maml", settings)
    fomaml, _ = made(lab, "fomaml", settings)
    fomaml.training_step(batch, in_training(lab))
    along, slope = slopes(lab, maml, batch)["head.weight"]
    found = float((fomaml.head.weight.grad * along).sum())
    assert found != pytest.approx(slope, rel=1e-2)
