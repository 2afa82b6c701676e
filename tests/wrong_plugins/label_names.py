"""Prefers class 0, and says that labels are names."""

import torch
from honest import Centroid


class Preferring(Centroid):
    """Class 0 first."""

    name = "label-names"

    def predict(self, state, queries, ctx):
        logits = super().predict(state, queries, ctx)
        return logits + torch.arange(logits.shape[-1], device=logits.device)
