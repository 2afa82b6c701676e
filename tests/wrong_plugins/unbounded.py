"""A number without bounds or meaning, and weights that move at test."""

import torch
from honest import Centroid

from metabench import Hyperparameters


class Settings(Hyperparameters):
    scale: float = 1.0


class Moving(Centroid):
    """A buffer that counts."""

    name = "unbounded"
    hyperparameters = Settings

    def build(self):
        self.register_buffer("count", torch.zeros(()))

    def adapt(self, support, ctx):
        self.count += 1
        return super().adapt(support, ctx)
