"""Nothing is wrong with this one: the others are it, and one thing that is wrong."""

import torch
import torch.nn.functional as F

from metabench import EmbeddingAlgorithm


class Centroid(EmbeddingAlgorithm):
    """Snell et al. 2017, equations 1 and 2."""

    name = "honest"
    family = "metric"
    reference = "Snell et al. 2017, arXiv:1703.05175"
    summary = "Prototypes, by nobody who means harm."
    equivariant_to = frozenset({"support-order", "class-labels"})

    def adapt(self, support, ctx):
        member = F.one_hot(support.targets.values, support.ways).to(support.items.data.dtype)
        return member.mT @ support.items.data / member.sum(1).unsqueeze(-1)

    def predict(self, state, queries, ctx):
        return -torch.cdist(queries.data, state).square() / state.shape[-1]
