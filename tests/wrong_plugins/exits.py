"""Calls sys.exit in the middle of a prediction."""

import sys

from honest import Centroid


class Exiting(Centroid):
    """sys.exit(0)."""

    name = "exits"

    def predict(self, state, queries, ctx):
        if queries.data.shape[1] == 4:
            sys.exit(0)
        return super().predict(state, queries, ctx)
