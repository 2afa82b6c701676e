"""Batch norm with a second derivative of its own: against PyTorch's and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.engine.modes import using_engine
from metabench.engine.norm import BatchNorm
from metabench.engine.normalise import normalised

SHAPES = [(7, 3), (4, 3, 6), (3, 3, 4, 5)]
EPS = 1e-5


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(*shape), draw(shape[1]), draw(shape[1])


def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normalised(x, weight, bias, EPS)


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(ours, inputs(shape))
    assert torch.autograd.gradgradcheck(ours, inputs(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("taken", [[0], [1], [2], [0, 1, 2]])
def test_second_derivatives_are_pytorchs(
    shape: tuple[int, ...], channels_last: bool, taken: list[int]
) -> None:
    """`taken`: which first derivatives go into what is differentiated again."""
    if channels_last and len(shape) != 4:
        pytest.skip("only images are laid out channels last")
    found = []
    for function in (ours, theirs):
        x, weight, bias = inputs(shape)
        here = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        out = function(here, weight, bias)
        first = torch.autograd.grad(out.pow(3).sum(), (x, weight, bias), create_graph=True)
        value = sum(first[i].square().sum() for i in taken)
        found.append([out, *first, *torch.autograd.grad(value, (x, weight, bias))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_weight_of_zero_has_a_second_derivative() -> None:
    x, weight, bias = inputs((7, 3))
    found = []
    for function in (ours, theirs):
        flat = torch.zeros_like(weight).requires_grad_()
        (slope,) = torch.autograd.grad(
            function(x, flat, bias).pow(3).sum(), flat, create_graph=True
        )
        found.append(torch.autograd.grad(slope.square().sum(), (x, flat)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_layer_uses_it_in_the_loop_alone(monkeypatch) -> None:
    layer = BatchNorm(3, EPS, 0.1, True)
    layer.mode = "fresh"
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    assert "Normalise" in layer(x).grad_fn.name()
    with using_engine("compile"):
        assert "Normalise" not in layer(x).grad_fn.name()
    torch.func.grad(lambda value: layer(value).sum())(x)  # a transform has no place for it
    monkeypatch.setattr("metabench.engine.norm.normalised", lambda *args: pytest.fail("used"))
    with torch.no_grad():
        layer(x)
