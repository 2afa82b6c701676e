"""lstm against one in NumPy, number by number, and against PyTorch's layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from metabench import ItemSpec
from metabench_plugins.backbones.lstm import LSTM, LSTMHyperparameters

torch.set_num_threads(1)


def lstm(*shape: int, hidden: int = 5) -> LSTM:
    torch.manual_seed(0)
    return LSTM(ItemSpec("image", shape), LSTMHyperparameters(hidden=hidden)).double()


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x))


def test_each_step_is_that_of_the_equations() -> None:
    net = lstm(2, 4, 3)
    own = {name: value.numpy() for name, value in net.state_dict().items()}
    data = np.random.default_rng(0).normal(size=(2, 2, 4, 3))
    for item, features in zip(data, net(torch.from_numpy(data)).detach().numpy(), strict=True):
        hidden, cell = np.zeros(5), np.zeros(5)
        for t in range(4):
            row = np.concatenate([item[0, t], item[1, t]])  # of all channels
            before = hidden.copy()
            for unit in range(5):
                gates = [
                    own["of_input.weight"][gate * 5 + unit] @ row
                    + own["of_state.weight"][gate * 5 + unit] @ before
                    + own["of_input.bias"][gate * 5 + unit]
                    for gate in range(4)
                ]
                keep, forget, new, show = gates
                cell[unit] = sigmoid(forget) * cell[unit] + sigmoid(keep) * np.tanh(new)
                hidden[unit] = sigmoid(show) * np.tanh(cell[unit])
        np.testing.assert_allclose(features, hidden, atol=1e-12)


def test_pytorchs_own_layer_computes_the_same() -> None:
    net, other = lstm(1, 28, 28, hidden=16), nn.LSTM(28, 16, batch_first=True).double()
    with torch.no_grad():
        other.weight_ih_l0.copy_(net.of_input.weight)
        other.weight_hh_l0.copy_(net.of_state.weight)
        other.bias_ih_l0.copy_(net.of_input.bias)
        other.bias_hh_l0.zero_()
    data = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(net(data), other(data.squeeze(1))[1][0].squeeze(0))


def test_the_first_rows_are_remembered_at_the_beginning() -> None:
    """The forget gate's bias is 1, the others' are drawn within 1 / sqrt(hidden)."""
    bias = lstm(1, 8, 8, hidden=100).of_input.bias.detach()
    assert torch.equal(bias[100:200], torch.ones(100).double())
    assert bias[:100].abs().max() <= 0.1
    assert bias[200:].abs().max() <= 0.1


def test_it_takes_images_alone_and_has_no_map() -> None:
    with pytest.raises(ValueError, match="backbone lstm takes images"):
        LSTM(ItemSpec("vector", (12,)), LSTMHyperparameters())
    net = lstm(3, 84, 84)
    assert net.feature_map is None
    assert net(torch.rand(2, 3, 84, 84).double()).shape == (2, 5)
