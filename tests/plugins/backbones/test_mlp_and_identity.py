"""mlp and identity: items of any shape, flattened."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metabench import Hyperparameters, ItemSpec
from metabench_plugins.backbones.identity import Identity
from metabench_plugins.backbones.mlp import MLP, MLPHyperparameters

torch.set_num_threads(1)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


def test_mlp_has_the_parameters_that_a_hand_counts() -> None:
    linear = (784 * 256 + 256) + (256 * 128 + 128) + (128 * 64 + 64) + (64 * 64 + 64)
    norms = 2 * (256 + 128 + 64 + 64)
    net = MLP(ItemSpec("image", (1, 28, 28)), MLPHyperparameters())
    assert sum(p.numel() for p in net.parameters()) == linear + norms == 247_296


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, hidden=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
def test_mlp_takes_items_of_any_shape(shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    net = MLP(ItemSpec("vector", shape), MLPHyperparameters(hidden=hidden))
    assert net(torch.rand(3, *shape)).shape == (3, net.feature_dim) == (3, hidden[-1])
    assert net.feature_map is None


def test_mlp_is_linear_then_batch_norm_then_relu() -> None:
    torch.manual_seed(0)
    net = MLP(ItemSpec("image", (2, 3, 4)), MLPHyperparameters(hidden=(7, 5))).double().train()
    data = torch.randn(6, 2, 3, 4, dtype=torch.float64)
    features = data.flatten(1)
    for block in net.blocks:
        features = features @ block.linear.weight.T + block.linear.bias
        mean, variance = features.mean(0), features.var(0, correction=0)
        features = F.relu((features - mean) / (variance + block.norm.eps).sqrt())
    torch.testing.assert_close(net(data), features)


def test_mlp_weights_start_within_two_standard_deviations_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    for block in MLP(ItemSpec("vector", (784,)), MLPHyperparameters()).blocks:
        assert 0.019 < block.linear.weight.abs().max() <= 0.02
        # A normal distribution cut at two standard deviations keeps .8796 of one.
        assert abs(block.linear.weight.std() / (0.01 * 0.8796) - 1) < 0.05
        assert block.linear.bias.count_nonzero() == 0


@pytest.mark.parametrize("bad", [(), (0,), (8, -1)])
def test_impossible_layers_are_refused(bad: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        MLPHyperparameters(hidden=bad)


def test_layers_can_be_given_as_a_list() -> None:
    assert MLPHyperparameters.model_validate({"hidden": [32, 16]}).hidden == (32, 16)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES)
def test_identity_is_the_flattened_item(shape: tuple[int, ...]) -> None:
    net = Identity(ItemSpec("vector", shape), Hyperparameters())
    data = torch.rand(3, *shape)
    assert torch.equal(net(data), data.flatten(1))
    assert net.feature_dim == math.prod(shape)
    assert net.feature_map is None
    assert list(net.parameters()) == []


def test_features_of_no_items_have_their_size() -> None:
    item = ItemSpec("image", (1, 4, 4))
    assert Identity(item, Hyperparameters())(torch.empty(0, 1, 4, 4)).shape == (0, 16)


@pytest.mark.parametrize(
    ("backbone", "hp"), [(MLP, MLPHyperparameters()), (Identity, Hyperparameters())]
)
def test_tokens_are_refused_and_there_is_no_map(backbone: type, hp: Hyperparameters) -> None:
    with pytest.raises(ValueError, match="not tokens"):
        backbone(ItemSpec("tokens", (12,)), hp)
    with pytest.raises(TypeError, match="no feature map"):
        backbone(ItemSpec("vector", (12,)), hp).forward_map(torch.rand(2, 12))
