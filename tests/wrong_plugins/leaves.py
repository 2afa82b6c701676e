"""Ends the process in the middle of a prediction."""

import os

from honest import Centroid


class Leaving(Centroid):
    """os._exit."""

    name = "leaves"

    def predict(self, state, queries, ctx):
        if queries.data.shape[1] == 4:
            os._exit(3)
        return super().predict(state, queries, ctx)
