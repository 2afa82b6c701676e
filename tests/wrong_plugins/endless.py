"""Waits for something that does not come."""

from honest import Centroid


class Endless(Centroid):
    """while True."""

    name = "endless"

    def predict(self, state, queries, ctx):
        while queries.data.shape[1] == 4:
            pass
        return super().predict(state, queries, ctx)
