"""What transductive algorithms on SimpleShot's features share: they wait for the queries."""

from __future__ import annotations

from metabench import Context, PyTree, Support
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.metric.nearest_centroid import NearestCentroid


class KeptSupport(NearestCentroid):
    """Adapting keeps the support set, normalised; `predict` has the queries for all else.

    The state is the features (B, S, D) and the membership (B, S, N) of the support items.
    """

    family = "transductive"
    inference = "transductive"

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        features = self.normalised(support.items.data)
        return {"features": features, "member": class_membership(support)}
