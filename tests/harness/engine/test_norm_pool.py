"""Batch norm and max-pooling in one against PyTorch's own, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench.engine.modes import using_engine
from metabench.engine.norm import BatchNorm, Mode, as_transformed, norm_and_pool, norm_mode
from metabench.engine.norm_pool import normalised_and_pooled

EPS = 1e-5
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(side: int, layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, side, side, generator=generator, dtype=dtype)
    weight = torch.rand(4, generator=generator, dtype=dtype) + 0.5
    bias = torch.randn(4, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=layout)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def usual(size: int) -> Callable[..., Tensor]:
    def pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS), size)

    return pooled


def ours(size: int) -> Callable[..., Tensor]:
    return lambda x, weight, bias: normalised_and_pooled(x, weight, bias, EPS, size)


def derived_twice(function: Callable[..., Tensor], given: Inputs) -> list[Tensor]:
    """The value, its gradient, and the gradient of a random direction along that."""
    value = function(*given)
    loss = (value.relu() ** 2).mean()
    grads = torch.autograd.grad(loss, given, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    along = sum((g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in grads)
    assert isinstance(along, Tensor)
    return [value, *grads, *torch.autograd.grad(along, given)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_and_both_derivatives(layout: torch.memory_format, side: int, size: int) -> None:
    given = inputs(side, layout)
    for found, expected in zip(
        derived_twice(ours(size), given), derived_twice(usual(size), given), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(ours(size), given)
    assert torch.autograd.gradgradcheck(ours(size), given)


@pytest.mark.parametrize("shape", [(3, 1, 6, 6), (2, 4, 7, 5), (1, 3, 4, 8)])
def test_any_layout(shape: tuple[int, ...]) -> None:
    """One channel, maps that are not square, and strides that are neither of the usual two."""
    x, weight, bias = inputs(8, torch.contiguous_format)
    x = x.detach()[: shape[0], : shape[1], : shape[2], : shape[3]]
    for laid in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.mT.contiguous().mT,
        x.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2),
    ):
        given = laid.detach().requires_grad_(), weight[: shape[1]], bias[: shape[1]]
        for found, expected in zip(
            derived_twice(ours(2), given), derived_twice(usual(2), given), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_no_gradient_for_the_input() -> None:
    x, weight, bias = inputs(6, torch.channels_last)
    for function in (ours(2), usual(2)):
        function(x.detach(), weight, bias).square().sum().backward()
    found = weight.grad
    assert found is not None
    weight.grad = None
    usual(2)(x.detach(), weight, bias).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(found, 2 * weight.grad)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchNorm(4, EPS, 0.1, affine=True).double()
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))  # type: ignore[union-attr]
            self.norm.running_mean.fill_(0.3)
            self.norm.running_var.fill_(1.7)

    def forward(self, x: Tensor) -> Tensor:
        return norm_and_pool(self.norm, x, 2)


@pytest.mark.parametrize("mode", ["auto", "fresh", "record", "stored", "update"])
@pytest.mark.parametrize("training", [True, False])
def test_every_mode_gives_what_one_after_the_other_gives(mode: Mode, training: bool) -> None:
    x = inputs(6, torch.channels_last)[0]
    found, expected = [], []
    for results, function in (
        (found, lambda net: net(x)),
        (expected, lambda net: F.max_pool2d(net.norm(x), 2)),
    ):
        net = Net().train(training)
        with norm_mode(net, mode):
            out = function(net)
        grads = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
        results += [out, *grads, net.norm.running_mean, net.norm.running_var]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_weight_that_is_not_positive_turns_the_order_round() -> None:
    x, net = inputs(6, torch.channels_last)[0], Net()
    for value in (-0.7, 0.0):
        with torch.no_grad():
            net.norm.weight[1] = value  # type: ignore[index]
        for mode in ("fresh", "stored"):
            with norm_mode(net, mode):  # type: ignore[arg-type]
                torch.testing.assert_close(net(x), F.max_pool2d(net.norm(x), 2))


@pytest.mark.parametrize("engine", ["vmap", "compile"])
def test_other_engines_do_one_after_the_other(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, net = inputs(6, torch.channels_last)[0], Net()
    called = []
    monkeypatch.setattr(
        "metabench.engine.norm.normalised_and_pooled", lambda *args: called.append(args)
    )
    with using_engine(engine), norm_mode(net, "fresh"):  # type: ignore[arg-type]
        net(x)
    with as_transformed(), norm_mode(net, "fresh"):
        net(x)
    with norm_mode(net, "fresh"):
        torch.func.grad(lambda y: net(y).sum())(x.detach())
    assert called == []
    with norm_mode(net, "fresh"):
        net(x)
    assert len(called) == 1


def test_less_is_kept_for_the_way_back() -> None:
    def kept(function: Callable[[], Tensor]) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = function()
        # What the function keeps by itself: the pooled values and their places.
        sizes[-1] = sum(
            v.nbytes for v in getattr(out.grad_fn, "rest", ())[:2] if isinstance(v, Tensor)
        )
        return sum(sizes.values())

    x, weight, bias = inputs(32, torch.channels_last, torch.float32)
    ratio = kept(lambda: usual(2)(x, weight, bias)) / kept(lambda: ours(2)(x, weight, bias))
    assert ratio > 1.4
