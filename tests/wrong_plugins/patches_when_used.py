"""Replaces a clock as it predicts, not as it loads."""

import time

from honest import Centroid

_own = time.perf_counter


def half():
    return _own() / 2


class Sly(Centroid):
    """Honest until it is used."""

    name = "patches-when-used"

    def predict(self, state, queries, ctx):
        time.perf_counter = half
        return super().predict(state, queries, ctx)
