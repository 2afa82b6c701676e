"""A recurrent network that reads an image row by row."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import Backbone, Field, Hyperparameters, ItemSpec
from metabench_plugins.backbones.images import image_shape
from metabench_plugins.backbones.weights import WithWeights, load_file


class LSTMHyperparameters(WithWeights):
    hidden: Annotated[
        int, Field(ge=1, le=65_536, description="size of the state, which is the features")
    ] = 128


class LSTM(Backbone):
    """Long short-term memory over the rows of an image, top to bottom.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of Gers et al.,
    "Learning to Forget", 2000. With x_t the t-th row of all channels, and h_0 = c_0 = 0:
        i, f, g, o = W x_t + U h_(t-1) + b                                              (1)
        c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)                                   (2)
        h_t = sigmoid(o) tanh(c_t)                                                      (3)
    The features are the last h. Weights are drawn uniformly within 1 / sqrt(hidden), as PyTorch
    does; the forget gate's bias starts at 1, so that the first rows are remembered.

    Differs from PyTorch's own layer: one bias, not two that are added. It is written out because
    that one's kernels on CUDA can't be differentiated twice.
    """

    name = "lstm"
    reference = "Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735"
    summary = "An LSTM that reads the rows of an image as a sequence."
    hyperparameters: ClassVar[type[Hyperparameters]] = LSTMHyperparameters
    last_block = ("of_input", "of_state")  # one layer

    def __init__(self, item: ItemSpec, hp: LSTMHyperparameters) -> None:
        super().__init__(item, hp)
        channels, _, width = image_shape(item, "backbone lstm")
        self.feature_dim = hp.hidden
        self.of_input = nn.Linear(channels * width, 4 * hp.hidden)
        self.of_state = nn.Linear(hp.hidden, 4 * hp.hidden, bias=False)
        within = 1 / math.sqrt(hp.hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -within, within)
        with torch.no_grad():
            self.of_input.bias[hp.hidden : 2 * hp.hidden].fill_(1.0)
        load_file(self, hp.weights)

    def forward(self, data: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, hidden) features."""
        rows = data.transpose(1, 2).flatten(2)  # (n, H, C * W)
        from_input = self.of_input(rows)  # (n, H, 4 * hidden), all rows at once
        hidden: Tensor = from_input.new_zeros(len(data), self.feature_dim)
        cell = hidden
        for row in from_input.unbind(1):
            i, f, g, o = (row + self.of_state(hidden)).chunk(4, dim=1)  # (1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()  # (2)
            hidden = o.sigmoid() * cell.tanh()  # (3)
        return hidden
