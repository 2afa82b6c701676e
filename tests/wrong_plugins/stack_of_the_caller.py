"""Looks for the labels among the local variables of whoever called."""

import sys

import torch
from honest import Centroid


class Peeping(Centroid):
    """What the caller knows."""

    name = "stack-of-the-caller"

    def predict(self, state, queries, ctx):
        logits = super().predict(state, queries, ctx)
        frame = sys._getframe()
        while frame is not None:
            drawn = frame.f_locals.get("drawn")
            if hasattr(drawn, "query_labels"):
                places = [drawn.numbers.tolist().index(number) for number in ctx.rng._index]
                labels = torch.from_numpy(drawn.query_labels[places])
                if labels.shape == logits.shape[:2]:
                    return logits + 100 * torch.nn.functional.one_hot(labels, logits.shape[-1])
            frame = frame.f_back
        return logits
