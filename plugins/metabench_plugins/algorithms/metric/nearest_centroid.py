"""SimpleShot: the nearest class mean of pre-trained features, normalised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metabench import (
    Context,
    EmbeddingAlgorithm,
    Field,
    Fit,
    Hyperparameters,
    ItemBatch,
    Items,
    Output,
    Phase,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import class_means, class_membership, squared_distances
from metabench_plugins.algorithms.pretrained import pretrained


class NearestCentroidHyperparameters(Hyperparameters):
    normalisation: Annotated[
        Literal["un", "l2n", "cl2n"],
        Field(
            description="of features: none; to length 1; centred on the training split's mean "
            "feature, then to length 1"
        ),
    ] = "cl2n"


class NearestCentroid(EmbeddingAlgorithm):
    """SimpleShot.

    Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten, "SimpleShot: Revisiting
    Nearest-Neighbor Classification for Few-Shot Learning", 2019, https://arxiv.org/abs/1911.04623

    The backbone is trained to classify all training classes, without episodes. A query gets the
    class whose mean support feature is nearest, after features have been centred and scaled to
    length 1, which is most of what makes it competitive.

    Predictions are scores, negative squared distances: SimpleShot states no probabilities.

    Differs: nothing in the classifier; the pre-training is the recipe's, not the paper's 90 epochs
    with augmentation. Over a backbone without weights, such as `identity`, nothing is trained.
    """

    name = "nearest-centroid"
    family = "metric"
    reference = "Wang et al. 2019, arXiv:1911.04623"
    summary = "SimpleShot: nearest class mean of pre-trained, normalised features."
    equivariant_to = frozenset({"support-order", "class-labels"})
    output: ClassVar[Output] = "scores"
    hyperparameters: ClassVar[type[Hyperparameters]] = NearestCentroidHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)

    hp: NearestCentroidHyperparameters
    centre: Tensor

    def build(self) -> None:
        self.register_buffer("centre", torch.zeros(self.backbone.feature_dim))

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """Shared pre-training; then, for CL2N, the mean feature of the training split."""
        phases = pretrained(self.backbone, self.problem, recipe)
        if self.hp.normalisation == "cl2n":
            phases.append(Fit(self.find_centre, name="centre"))
        return phases

    def find_centre(self, batches: Iterator[ItemBatch], ctx: Context) -> None:
        """The mean feature of all training items; summed in float64, there may be many."""
        count, total = 0, torch.zeros_like(self.centre, dtype=torch.float64)
        for batch in batches:
            features = self.embed(batch.data)  # (n, D)
            count += len(features)
            total += features.double().sum(0)
        self.centre.copy_(total / count)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        features = self.normalised(support.items.data)  # (B, S, D)
        return {"centroids": class_means(features, class_membership(support))}  # (2), (B, N, D)

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return -squared_distances(self.normalised(queries.data), state["centroids"])  # (1)

    def normalised(self, features: Tensor) -> Tensor:
        """Features (..., D) under the paper's UN, L2N or CL2N (section 3)."""
        if self.hp.normalisation == "un":
            return features
        if self.hp.normalisation == "cl2n":
            features = features - self.centre
        return F.normalize(features, dim=-1)
