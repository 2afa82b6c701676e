"""The batch norm of the engine: its modes against PyTorch's own layers and against the formula."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metabench.engine.norm import BatchNorm, Mode, convert, norm_mode
from metabench.errors import PluginError

torch.set_num_threads(1)

SHAPES = [(6, 3), (5, 3, 7), (4, 3, 5, 6), (3, 3, 2, 4, 3)]
PYTORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pair(dims: int, affine: bool = True, momentum: float = 0.1) -> tuple[nn.BatchNorm2d, BatchNorm]:
    """PyTorch's layer with uneven weights and moments, and ours converted from a copy of it."""
    theirs = PYTORCH[dims](3, eps=1e-3, momentum=momentum, affine=affine).double()
    with torch.no_grad():
        theirs.running_mean.copy_(draw(3, seed=1))
        theirs.running_var.copy_(draw(3, seed=2).exp())
        if affine:
            theirs.weight.copy_(draw(3, seed=3))
            theirs.bias.copy_(draw(3, seed=4))
    holder = nn.Sequential(copy.deepcopy(theirs))
    convert(holder)
    ours = holder[0]
    assert isinstance(ours, BatchNorm)
    return theirs, ours


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


def normalised(layer: BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    z = (x - mean.view(shape)) / (variance.view(shape) + layer.eps).sqrt()
    if layer.weight is None or layer.bias is None:
        return z
    return z * layer.weight.view(shape) + layer.bias.view(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_auto_is_pytorchs_layer_with_its_running_averages(
    shape: tuple[int, ...], affine: bool, training: bool
) -> None:
    theirs, ours = pair(len(shape), affine)
    theirs.train(training)
    ours.train(training)
    for seed in range(3):
        x = draw(*shape, seed=10 + seed)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_fresh_takes_the_batchs_moments_and_keeps_nothing(
    shape: tuple[int, ...], affine: bool
) -> None:
    _, layer = pair(len(shape), affine)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = draw(*shape)
    layer.mode = "fresh"
    torch.testing.assert_close(layer(x), normalised(layer, x, *moments(x)))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_record_keeps_the_batchs_moments_and_stored_uses_them_on_others(
    shape: tuple[int, ...],
) -> None:
    _, layer = pair(len(shape))
    support, queries = draw(*shape, seed=1), 3 + 2 * draw(*shape, seed=2)
    layer.mode = "record"
    torch.testing.assert_close(layer(support), normalised(layer, support, *moments(support)))
    torch.testing.assert_close(
        (layer.running_mean, layer.running_var), moments(support), rtol=1e-12, atol=1e-12
    )
    layer.mode = "stored"
    torch.testing.assert_close(layer(queries), normalised(layer, queries, *moments(support)))
    torch.testing.assert_close(layer(queries)[:1], layer(queries[:1]), rtol=1e-12, atol=1e-12)


@given(momentum=st.floats(0.0, 1.0), seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_update_moves_the_stored_moments_by_the_momentum(momentum: float, seeds: list[int]) -> None:
    _, layer = pair(4, momentum=momentum)
    layer.mode = "update"
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    for seed in seeds:
        x = draw(4, 3, 5, 6, seed=seed)
        torch.testing.assert_close(layer(x), normalised(layer, x, *moments(x)))
        of_batch, n = moments(x), x.numel() / 3
        mean = (1 - momentum) * mean + momentum * of_batch[0]
        variance = (1 - momentum) * variance + momentum * of_batch[1] * n / (n - 1)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)


def test_update_is_what_pytorch_does_in_training() -> None:
    theirs, ours = pair(4)
    x = draw(4, 3, 5, 6)
    ours.mode = "update"
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_flow_from_queries_through_the_recorded_moments_into_the_support(
    affine: bool,
) -> None:
    layer = BatchNorm(3, 1e-3, 0.1, affine).double()
    weights = [draw(3, seed=8), draw(3, seed=9)] if affine else []

    def queries_after(support: Tensor, queries: Tensor, *weights: Tensor) -> Tensor:
        names = ["running_mean", "running_var", "weight", "bias"]
        tensors = dict(zip(names, [torch.zeros(3), torch.ones(3), *weights], strict=False))
        with norm_mode(layer, "record"):
            functional_call(layer, tensors, (support,))
        with norm_mode(layer, "stored"):
            return functional_call(layer, tensors, (queries,))

    inputs = [draw(4, 3, 2), draw(2, 3, 2, seed=1), *weights]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(queries_after, inputs)
    assert torch.autograd.gradgradcheck(queries_after, inputs)
    assert torch.autograd.grad(queries_after(*inputs).pow(2).sum(), inputs[0])[0].abs().max() > 0.1


def test_recording_in_a_functional_call_hands_the_moments_back_and_leaves_the_layer() -> None:
    layer = BatchNorm(3, 1e-5, 0.1, True).double()
    tensors = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    x = draw(5, 3, 4)
    with norm_mode(layer, "record"):
        functional_call(layer, tensors, (x,))
    torch.testing.assert_close((tensors["running_mean"], tensors["running_var"]), moments(x))
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(layer.running_var, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["fresh", "record", "stored", "update"])
def test_vmap_equals_a_loop_over_sets(mode: Mode) -> None:
    layer = BatchNorm(3, 1e-5, 0.1, True).double()
    sets = draw(4, 5, 3, 2, 2)
    weights = draw(4, 3, seed=1)
    start = {"running_mean": draw(3, seed=2), "running_var": draw(3, seed=3).exp()}

    def one(x: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = {"weight": weight, **start}
        with norm_mode(layer, mode):
            out = functional_call(layer, tensors, (x,))
        return out, {name: tensors[name] for name in start}

    together, kept = vmap(one)(sets, weights)
    for b in range(4):
        alone, alone_kept = one(sets[b], weights[b])
        torch.testing.assert_close(together[b], alone)
        for name, value in alone_kept.items():
            torch.testing.assert_close(kept[name][b], value)


@pytest.mark.parametrize("mode", ["fresh", "record", "update"])
def test_func_grad_equals_plain_autograd(mode: Mode) -> None:
    layer = BatchNorm(3, 1e-5, 0.1, True).double()
    x, labels = draw(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(params: dict[str, Tensor]) -> Tensor:
        tensors = {**params, **{k: v.clone() for k, v in layer.named_buffers()}}
        with norm_mode(layer, mode):
            return F.cross_entropy(functional_call(layer, tensors, (x,)), labels)

    params = dict(layer.named_parameters())
    expected = torch.autograd.grad(loss(params), list(params.values()))
    for found, value in zip(grad(loss)(params).values(), expected, strict=True):
        torch.testing.assert_close(found, value)


class Nested(nn.Module):
    """Batch norms at several depths, one without running averages, one without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
        block = nn.ModuleDict({"norm": nn.BatchNorm2d(3, affine=False), "pool": nn.MaxPool2d(2)})
        self.blocks = nn.ModuleList([block])
        self.last = nn.BatchNorm1d(3, momentum=None, track_running_stats=False, eps=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = block["pool"](block["norm"](x))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


def test_convert_replaces_every_norm_keeps_weights_and_names_and_computes_the_same() -> None:
    torch.manual_seed(0)
    theirs = Nested()
    theirs(draw(8, 1, 9, 9).float())  # moves the running averages off their start
    ours = copy.deepcopy(theirs)
    names = {name for name, _ in ours.named_parameters()}
    convert(ours)
    norms = [m for m in ours.modules() if isinstance(m, BatchNorm)]
    assert len(norms) == 3
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in ours.modules())
    assert {name for name, _ in ours.named_parameters()} == names
    for name, value in ours.named_parameters():
        assert torch.equal(value, dict(theirs.named_parameters())[name]), name
    x = draw(8, 1, 9, 9, seed=1).float()
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.eval()
    ours.eval()
    torch.testing.assert_close(ours.stem(x), theirs.stem(x))


def test_convert_keeps_training_mode_and_shares_the_parameters() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3)).eval()
    weight = net[0].weight
    convert(net)
    assert net[0].weight is weight
    assert not net[0].training


def test_norm_mode_reaches_nested_layers_and_is_restored_after_an_error() -> None:
    net = Nested()
    convert(net)
    layers = [m for m in net.modules() if isinstance(m, BatchNorm)]
    layers[0].mode = "stored"

    def fails_inside() -> None:
        with norm_mode(net, "fresh"):
            assert {layer.mode for layer in layers} == {"fresh"}
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert [layer.mode for layer in layers] == ["stored", "auto", "auto"]


def test_a_batch_norm_with_a_forward_of_its_own_is_not_replaced_in_silence() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    with pytest.raises(PluginError, match="Activated, a batch norm that computes"):
        convert(nn.Sequential(nn.Sequential(Activated(3))))
