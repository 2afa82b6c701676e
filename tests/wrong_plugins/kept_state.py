"""Keeps what predict reads beside the state, and a tensor of each episode in a list."""

from honest import Centroid


class Keeping(Centroid):
    """self.scale is of the last episode."""

    name = "kept-state"

    def build(self):
        self.scale, self.log = 1.0, []

    def adapt(self, support, ctx):
        self.scale = support.items.data.std().detach()
        self.log.append(self.scale)
        return super().adapt(support, ctx)

    def predict(self, state, queries, ctx):
        return super().predict(state, queries, ctx) * self.scale
