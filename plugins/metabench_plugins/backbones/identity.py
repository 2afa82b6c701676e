"""No network at all: the values of an item are its features."""

from __future__ import annotations

import math

from torch import Tensor

from metabench import Backbone, Hyperparameters, ItemSpec


class Identity(Backbone):
    """Flattened items (for images: pixels), unchanged; there is nothing to train.

    What an algorithm reaches with it is what the data give away by themselves: the floor that a
    trained backbone has to beat.
    """

    name = "identity"
    family = "fixed"
    reference = "no paper: it computes nothing"
    summary = "The flattened item itself; nothing is learnt."

    def __init__(self, item: ItemSpec, hp: Hyperparameters) -> None:
        super().__init__(item, hp)
        if item.kind == "tokens":
            raise ValueError("backbone identity takes items of real numbers, not tokens")
        self.feature_dim = math.prod(item.shape)

    def forward(self, data: Tensor) -> Tensor:
        """(n, ...) items to (n, D) features, D the number of an item's values."""
        return data.reshape(data.shape[0], self.feature_dim)
