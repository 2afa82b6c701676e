"""A buffer that counts the episodes at test."""

import torch
from honest import Centroid


class Moving(Centroid):
    """How often it was asked."""

    name = "moving-weights"

    def build(self):
        self.register_buffer("count", torch.zeros(()))

    def adapt(self, support, ctx):
        self.count += 1
        return super().adapt(support, ctx)
