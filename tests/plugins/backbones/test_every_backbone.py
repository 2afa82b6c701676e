"""What holds for every backbone: torch.func, the engine's batch norm, gradients, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from metabench import Backbone, Hyperparameters, ItemSpec
from metabench.engine.norm import convert, norm_mode
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.conv6 import Conv6
from metabench_plugins.backbones.identity import Identity
from metabench_plugins.backbones.lstm import LSTM, LSTMHyperparameters
from metabench_plugins.backbones.mlp import MLP, MLPHyperparameters
from metabench_plugins.backbones.resnet import ResNet10, ResNet18, ResNetHyperparameters
from metabench_plugins.backbones.resnet12 import ResNet12, ResNet12Hyperparameters
from metabench_plugins.backbones.wrn import WRN, WRNHyperparameters

torch.set_num_threads(1)

SHAPE = (2, 19, 17)
ITEM = ItemSpec("image", SHAPE)
TRAINABLE: dict[str, Callable[[], Backbone]] = {
    "conv4-max-pool": lambda: Conv4(ITEM, Conv4Hyperparameters(width=2)),
    "conv4-stride": lambda: Conv4(
        ITEM, Conv4Hyperparameters(width=2, downsample="stride", pooling="mean")
    ),
    "resnet12": lambda: ResNet12(ITEM, ResNet12Hyperparameters(widths=(2, 2, 2, 2), drop_rate=0.0)),
    "mlp": lambda: MLP(ITEM, MLPHyperparameters(hidden=(3, 2))),
    "conv6": lambda: Conv6(ITEM, Conv4Hyperparameters(width=2)),
    "lstm": lambda: LSTM(ITEM, LSTMHyperparameters(hidden=3)),
    "resnet10": lambda: ResNet10(ITEM, ResNetHyperparameters(width=1)),
    "resnet18-large": lambda: ResNet18(ITEM, ResNetHyperparameters(width=1, stem="large")),
    "wrn": lambda: WRN(ITEM, WRNHyperparameters(blocks=1, widen=1)),
}
EVERY = {**TRAINABLE, "identity": lambda: Identity(ITEM, Hyperparameters())}

trainable = pytest.mark.parametrize("make", TRAINABLE.values(), ids=TRAINABLE.keys())
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


def items(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=dtype)


def ready(make: Callable[[], Backbone], seed: int = 0) -> Backbone:
    """In float64, in training mode, batch norm replaced as the engine does it."""
    torch.manual_seed(seed)
    net = make().double()
    convert(net)
    return net.train()


@every
def test_construction_follows_the_seed_alone(make: Callable[[], Backbone]) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(make().state_dict())
    same, other = states[1], states[2]
    assert states[0].keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in states[0].items())
    if states[0]:
        assert any(not torch.equal(value, other[name]) for name, value in states[0].items())


@every
def test_meta_tensors_pass(make: Callable[[], Backbone]) -> None:
    with torch.device("meta"):
        net = make()
        features = net(torch.empty(5, *SHAPE))
    assert features.shape == (5, net.feature_dim)
    assert features.is_meta


@every
def test_copies_and_saved_states_compute_the_same(make: Callable[[], Backbone]) -> None:
    torch.manual_seed(0)
    net, other = make(), make()
    data = items(6, torch.float32)
    net.train()(data)  # running moments of batch norm that aren't the initial ones
    twin = copy.deepcopy(net)
    other.load_state_dict(load(save(net.state_dict())))
    expected = net.eval()(data)
    assert torch.equal(twin.eval()(data), expected)
    assert torch.equal(other.eval()(data), expected)

    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin.eval()(data), expected)  # nothing is shared


@every
def test_an_evaluated_item_does_not_depend_on_its_neighbours(make: Callable[[], Backbone]) -> None:
    net = ready(make)
    data = items(6)
    with norm_mode(net, "update"):
        net(data)
    net.eval()
    together = net(data)
    alone = torch.cat([net(data[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@trainable
@pytest.mark.parametrize("mode", ["fresh", "stored"])
def test_gradients_are_those_of_finite_differences(make: Callable[[], Backbone], mode: str) -> None:
    net, data = ready(make), items(4)
    with norm_mode(net, "update"):
        net(data)
    names = [name for name, _ in net.named_parameters()]

    def features(*values: Tensor) -> Tensor:
        with norm_mode(net, mode):
            return functional_call(net, dict(zip(names, values, strict=True)), (data,))

    values = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    many = sum(value.numel() for value in values) > 1000
    assert torch.autograd.gradcheck(features, values, fast_mode=many)


@trainable
def test_second_derivatives_are_those_of_finite_differences(make: Callable[[], Backbone]) -> None:
    net, data = ready(make), items(4)
    names = [name for name, _ in net.named_parameters()]

    def features(*values: Tensor) -> Tensor:
        with norm_mode(net, "fresh"):
            return functional_call(net, dict(zip(names, values, strict=True)), (data,))

    values = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    assert torch.autograd.gradgradcheck(features, values, fast_mode=True)


def adapted_queries(net: nn.Module, params: dict[str, Tensor], sets: Tensor) -> Tensor:
    """One inner step on the first half, then features of the second by the first's moments."""
    support, queries = sets.chunk(2)

    def energy(p: dict[str, Tensor]) -> Tensor:
        with norm_mode(net, "fresh"):
            return functional_call(net, p, (support,)).tanh().square().sum()

    slopes = grad(energy)(params)
    params = {name: value - 0.1 * slopes[name] for name, value in params.items()}
    tensors = {**params, **dict(net.named_buffers())}
    with norm_mode(net, "record"):
        functional_call(net, tensors, (support,))
    with norm_mode(net, "stored"):
        return functional_call(net, tensors, (queries,))


@trainable
def test_adaptation_under_vmap_is_adaptation_one_by_one(make: Callable[[], Backbone]) -> None:
    nets = [ready(make, seed) for seed in range(3)]
    params, _ = stack_module_state(nets)
    sets = torch.stack([items(8) for _ in nets])
    at_once = vmap(lambda p, x: adapted_queries(nets[0], p, x))(params, sets)
    for net, one_set, features in zip(nets, sets, at_once, strict=True):
        expected = adapted_queries(net, dict(net.named_parameters()), one_set)
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


@trainable
def test_functional_call_leaves_the_network_as_it_was(make: Callable[[], Backbone]) -> None:
    net = ready(make)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adapted_queries(net, dict(net.named_parameters()), items(6))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_dropout_under_vmap_differs_from_one_parameter_set_to_the_next() -> None:
    hp = ResNet12Hyperparameters(widths=(4, 4, 4, 4), drop_rate=0.4)
    torch.manual_seed(0)
    net = ResNet12(ItemSpec("image", (1, 32, 32)), hp)
    convert(net)
    params = {name: torch.stack([p, p]) for name, p in net.train().named_parameters()}
    data = torch.rand(3, 1, 32, 32)

    def features(p: dict[str, Tensor]) -> Tensor:
        with norm_mode(net, "fresh"):
            return functional_call(net, p, (data,))

    first, second = vmap(features, randomness="different")(params)
    assert not torch.equal(first, second)
    assert first.isfinite().all()


@every
def test_every_hyperparameter_is_described(make: Callable[[], Backbone]) -> None:
    net = make()
    assert isinstance(net.hp, type(net).hyperparameters)
    for name, field in type(net).hyperparameters.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
