"""A multi-layer perceptron on flattened items."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec
from metabench_plugins.backbones.weights import WithWeights, load_file

WEIGHT_STD = 0.01


class MLPHyperparameters(WithWeights):
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="units of each layer; the last are the features"),
    ] = (256, 128, 64, 64)


class DenseBlock(nn.Module):
    """Linear layer, batch norm, ReLU."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        self.norm = nn.BatchNorm1d(units)
        nn.init.trunc_normal_(
            self.linear.weight, std=WEIGHT_STD, a=-2 * WEIGHT_STD, b=2 * WEIGHT_STD
        )
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(features)))


class MLP(Backbone):
    """Linear layers with batch norm and ReLU, by default of 256, 128, 64 and 64 units.

    Finn et al., "Model-Agnostic Meta-Learning", 2017, section 5.2: the non-convolutional network
    for Omniglot; the classifier behind it is the algorithm's. Weights are drawn from a normal
    distribution with standard deviation .01, cut at two of them, as in the authors' code (for the
    same reason as in `conv4`: it sets what an inner learning rate means).

    Differs: the authors' batch norm has no scale.
    """

    name = "mlp"
    reference = "Finn et al. 2017, arXiv:1703.03400"
    summary = "Fully connected layers on the flattened item."
    hyperparameters: ClassVar[type[Hyperparameters]] = MLPHyperparameters

    def __init__(self, item: ItemSpec, hp: MLPHyperparameters) -> None:
        super().__init__(item, hp)
        if item.kind == "tokens":
            raise ValueError("backbone mlp takes items of real numbers, not tokens")
        self.inputs = math.prod(item.shape)
        self.feature_dim = hp.hidden[-1]
        sizes = (self.inputs, *hp.hidden[:-1])
        self.blocks = nn.Sequential(*map(DenseBlock, sizes, hp.hidden))
        load_file(self, hp.weights)

    def forward(self, data: Tensor) -> Tensor:
        """(n, ...) items to (n, D) features."""
        features: Tensor = self.blocks(data.reshape(data.shape[0], self.inputs))
        return features
