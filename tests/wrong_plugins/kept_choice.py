"""A candidate that is put in place stays a little when another one is."""

import torch
from honest import Centroid

from metabench import Choose


class Piling(Centroid):
    """Each candidate multiplies what the one before it left."""

    name = "kept-choice"

    def build(self):
        self.register_buffer("scale", torch.ones(()))

    def phases(self, recipe):
        return [*super().phases(recipe), Choose(self.put, candidates=2)]

    def put(self, number):
        self.scale.mul_((1.0, 3.0)[number])

    def predict(self, state, queries, ctx):
        return super().predict(state, queries, ctx) * self.scale
