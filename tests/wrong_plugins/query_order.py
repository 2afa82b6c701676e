"""Believes that queries come class by class."""

import torch
from honest import Centroid


class Ordered(Centroid):
    """The position of a query."""

    name = "query-order"
    inference = "transductive"

    def predict(self, state, queries, ctx):
        logits = super().predict(state, queries, ctx)
        count, ways = logits.shape[1:]
        place = torch.arange(count, device=logits.device) * ways // count
        return logits + 100 * torch.nn.functional.one_hot(place, ways)
