"""Nearest class mean on pixels: an algorithm as somebody outside the project would write it."""

import torch
import torch.nn.functional as F

from metabench import Algorithm, Field, Hyperparameters


class PixelCentroidSettings(Hyperparameters):
    normalise: bool = Field(True, description="scale each item to unit length")
    temperature: float = Field(1.0, gt=0, description="divides the squared distances")


class PixelCentroid(Algorithm):
    """Classify a query by the nearest class mean of the support set's flattened items."""

    name = "pixel-centroid"
    version = "1"
    family = "metric"
    reference = "Tibshirani et al. 2002, doi:10.1073/pnas.082099299"
    summary = "Nearest class mean on flattened, scaled pixels; nothing is trained."
    inference = "inductive"
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters = PixelCentroidSettings

    def phases(self, recipe):
        return []

    def features(self, items):
        pixels = items.data.flatten(2)  # (B, S, D)
        return F.normalize(pixels, dim=-1) if self.hp.normalise else pixels

    def adapt(self, support, ctx):
        features = self.features(support.items)  # (B, S, D)
        member = F.one_hot(support.targets.values, support.ways).to(features)  # (B, S, N)
        sums = torch.einsum("bsn,bsd->bnd", member, features)
        return {"centroids": sums / member.sum(1).unsqueeze(-1)}  # (B, N, D)

    def predict(self, state, queries, ctx):
        distances = torch.cdist(self.features(queries), state["centroids"])  # (B, Q, N)
        return -distances.square() / self.hp.temperature
