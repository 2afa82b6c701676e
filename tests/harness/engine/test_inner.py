"""The inner loop as a pure function: its laws, and its derivatives against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from metabench.engine.inner import Order, Tensors, sgd, unroll
from metabench.engine.lift import over_tasks

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem(seed: int = 0) -> tuple[Tensors, tuple[Tensor, Tensor]]:
    """A network of two smooth layers, and a regression task for it."""
    params = {"first": draw(3, 4, seed=seed), "bias": draw(4, seed=seed + 1)}
    params["second"] = draw(4, 2, seed=seed + 2)
    return params, (draw(6, 3, seed=seed + 3), draw(6, 2, seed=seed + 4))


def squared_error(params: Tensors, buffers: Tensors, batch: Any, t: int) -> tuple[Tensor, Tensors]:
    x, y = batch
    out = torch.tanh(x @ params["first"] + params["bias"]) @ params["second"]
    return (out - y).pow(2).mean(), buffers


def by_autograd(
    params: Tensors, batch: Any, lr: float, steps: int, which: list[str], order: Order
) -> Tensors:
    """The same inner loop, written with `torch.autograd.grad`."""
    for _ in range(steps):
        loss, _ = squared_error(params, {}, batch, 0)
        grads = torch.autograd.grad(loss, [params[n] for n in which], create_graph=order == 2)
        params = {**params, **{n: params[n] - lr * g for n, g in zip(which, grads, strict=True)}}
    return params


@given(
    seed=st.integers(0, 1000),
    steps=st.integers(0, 4),
    lr=st.floats(0.01, 0.5),
    order=st.sampled_from([1, 2]),
    which=st.lists(st.sampled_from(["first", "bias", "second"]), min_size=1, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_values_and_outer_gradients_are_those_of_plain_autograd(
    seed: int, steps: int, lr: float, order: Order, which: list[str]
) -> None:
    params, support = problem(seed)
    queries = (draw(5, 3, seed=seed + 7), draw(5, 2, seed=seed + 8))
    params = {name: value.requires_grad_() for name, value in params.items()}
    adapted, _, _ = unroll(squared_error, params, {}, support, (), sgd(lr), which, steps, order)
    expected = by_autograd(params, support, lr, steps, which, order)
    assert list(adapted) == [n for n in params if n not in which] + which
    for name, value in expected.items():
        torch.testing.assert_close(adapted[name], value)
    outer, _ = squared_error(adapted, {}, queries, 0)
    other, _ = squared_error(expected, {}, queries, 0)
    found = torch.autograd.grad(outer, list(params.values()))
    for value, wanted in zip(found, torch.autograd.grad(other, list(params.values())), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_no_steps_return_everything_as_it_came(order: Order) -> None:
    params, batch = problem()
    buffers, state = {"count": torch.zeros(())}, object()
    found = unroll(squared_error, params, buffers, batch, state, sgd(0.1), list(params), 0, order)
    assert all(found[0][name] is value for name, value in params.items())
    assert found[1] is buffers
    assert found[2] is state


@pytest.mark.parametrize("order", [1, 2])
def test_parameters_that_are_not_named_stay_the_same_tensors(order: Order) -> None:
    params, batch = problem()
    adapted, _, _ = unroll(squared_error, params, {}, batch, (), sgd(0.1), ["second"], 3, order)
    assert adapted["first"] is params["first"]
    assert adapted["bias"] is params["bias"]
    assert not torch.equal(adapted["second"], params["second"])


def test_one_step_on_a_quadratic_has_the_closed_form() -> None:
    """L(w) = (w - c)^T A (w - c) / 2: phi = w - lr A (w - c), d phi / d w = I - lr A."""
    root = draw(3, 3)
    a, c, lr = root @ root.T, draw(3, seed=1), 0.1
    w = draw(3, seed=2).requires_grad_()

    def loss(params: Tensors, buffers: Tensors, batch: Any, t: int) -> tuple[Tensor, Tensors]:
        gap = params["w"] - batch
        return gap @ a @ gap / 2, buffers

    for steps in (1, 4):
        power = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - lr * a, steps)
        for order, jacobian in ((2, power), (1, torch.eye(3, dtype=torch.float64))):
            adapted, _, _ = unroll(loss, {"w": w}, {}, c, (), sgd(lr), ["w"], steps, order)
            torch.testing.assert_close(adapted["w"], c + power @ (w - c))
            v = draw(3, seed=3)
            found = torch.autograd.grad(adapted["w"] @ v, w)[0]
            torch.testing.assert_close(found, jacobian.T @ v)


def test_the_outer_gradient_is_the_finite_difference() -> None:
    params, support = problem()
    queries = (draw(5, 3, seed=7), draw(5, 2, seed=8))

    def outer(*values: Tensor) -> Tensor:
        here = dict(zip(params, values, strict=True))
        after, _, _ = unroll(squared_error, here, {}, support, (), sgd(0.3), list(here), 3, 2)
        return squared_error(after, {}, queries, 0)[0]

    assert torch.autograd.gradcheck(outer, [v.requires_grad_() for v in params.values()])


@pytest.mark.parametrize("order", [1, 2])
def test_step_number_optimiser_state_and_buffers_are_handed_from_step_to_step(
    order: Order,
) -> None:
    seen: list[int] = []

    def loss(params: Tensors, buffers: Tensors, batch: Any, t: int) -> tuple[Tensor, Tensors]:
        seen.append(t)
        value, _ = squared_error(params, buffers, batch, t)
        return value, {"sum": buffers["sum"] + params["bias"].detach()}

    def momentum(
        params: Tensors, grads: Tensors, state: Tensors, t: int
    ) -> tuple[Tensors, Tensors]:
        state = {name: 0.9 * state[name] + grads[name] for name in params}
        return {name: value - 0.1 * state[name] for name, value in params.items()}, state

    params, batch = problem()
    start = {name: torch.zeros_like(value) for name, value in params.items()}
    buffers = {"sum": torch.zeros(4, dtype=torch.float64)}
    adapted, after, state = unroll(
        loss, params, buffers, batch, start, momentum, list(params), 4, order
    )
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9)
    total = torch.zeros(4, dtype=torch.float64)
    for _ in range(4):
        optimizer.zero_grad()
        total = total + leaves["bias"].detach()
        squared_error(leaves, {}, batch, 0)[0].backward()
        optimizer.step()
    assert seen == [0, 1, 2, 3]
    torch.testing.assert_close(after["sum"], total)
    for name, value in leaves.items():
        torch.testing.assert_close(adapted[name], value.detach())
        torch.testing.assert_close(state[name], optimizer.state[value]["momentum_buffer"])


@pytest.mark.parametrize("order", [1, 2])
def test_it_differentiates_where_gradients_are_switched_off(order: Order) -> None:
    params, batch = problem()
    expected, _, _ = unroll(squared_error, params, {}, batch, (), sgd(0.1), list(params), 2, order)
    with torch.no_grad():
        found, _, _ = unroll(squared_error, params, {}, batch, (), sgd(0.1), list(params), 2, order)
    for name, value in found.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("order", [1, 2])
def test_a_parameter_that_the_loss_does_not_use_stays(order: Order) -> None:
    params, batch = problem()
    params["unused"] = draw(2)
    adapted, _, _ = unroll(squared_error, params, {}, batch, (), sgd(0.1), list(params), 2, order)
    assert torch.equal(adapted["unused"], params["unused"])


def test_first_order_leaves_no_graph_in_gradients_or_buffers() -> None:
    params, batch = problem()
    params = {name: value.requires_grad_() for name, value in params.items()}
    kept: list[Tensors] = []

    def loss(here: Tensors, buffers: Tensors, batch: Any, t: int) -> tuple[Tensor, Tensors]:
        return squared_error(here, buffers, batch, t)[0], {"moment": here["bias"] * 2}

    def update(here: Tensors, grads: Tensors, state: Any, t: int) -> tuple[Tensors, Any]:
        kept.append(grads)
        return sgd(0.1)(here, grads, state, t)

    start = {"moment": torch.zeros(4)}
    _, buffers, _ = unroll(loss, params, start, batch, (), update, list(params), 2, 1)
    assert not buffers["moment"].requires_grad
    assert not any(value.requires_grad for grads in kept for value in grads.values())


@pytest.mark.parametrize("order", [1, 2])
def test_vmap_over_tasks_equals_over_tasks(order: Order) -> None:
    params, _ = problem()
    x, y = draw(3, 6, 3, seed=20), draw(3, 6, 2, seed=21)

    def one(x: Tensor, y: Tensor) -> Tensors:
        return unroll(squared_error, params, {}, (x, y), (), sgd(0.1), list(params), 2, order)[0]

    looped, mapped = over_tasks(one, x, y), vmap(one)(x, y)
    for name in params:
        torch.testing.assert_close(looped[name], mapped[name])


@given(
    size=st.integers(1, 4),
    trees=st.lists(st.sampled_from(["tensor", "dict", "tuple", "none"]), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_over_tasks_slices_every_tree_stacks_results_and_hands_none_on(
    size: int, trees: list[str]
) -> None:
    a, b = draw(size, 2), draw(size, 3, 1, seed=1)
    made = {"tensor": a, "dict": {"a": a, "n": None}, "tuple": (a, [b]), "none": None}
    arguments = [a, *(made[kind] for kind in trees)]

    def one(*parts: Any) -> Any:
        assert parts[0].shape == (2,)
        for kind, part in zip(trees, parts[1:], strict=True):
            assert kind != "none" or part is None
            assert kind != "dict" or (part["n"] is None and part["a"].shape == (2,))
            assert kind != "tuple" or part[1][0].shape == (3, 1)
        return {"given": list(parts), "sum": parts[0].sum()}

    result = over_tasks(one, *arguments)
    torch.testing.assert_close(result["sum"], a.sum(1))
    for kind, part in zip(trees, result["given"][1:], strict=True):
        if kind == "none":
            assert part is None
        elif kind == "dict":
            assert torch.equal(part["a"], a)
            assert part["n"] is None
        else:
            tensor = part if kind == "tensor" else part[0]
            assert torch.equal(tensor, a)


def test_gradients_flow_through_over_tasks_as_through_a_batch() -> None:
    x = draw(3, 4).requires_grad_()
    weights = draw(3, 4, seed=1)
    looped = over_tasks(lambda row, weight: (row * weight).tanh(), x, weights)
    found = torch.autograd.grad(looped.pow(2).sum(), x)[0]
    expected = torch.autograd.grad((x * weights).tanh().pow(2).sum(), x)[0]
    torch.testing.assert_close(found, expected)
