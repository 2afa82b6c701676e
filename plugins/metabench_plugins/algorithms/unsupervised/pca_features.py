"""Principal components of the training items as features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from metabench import Context, Field, Fit, ItemBatch, Phase, PyTree, Recipe, UsageError
from metabench_plugins.algorithms.unsupervised.heads import (
    HeadHyperparameters,
    UnsupervisedFeatures,
)

MOST_DIMENSIONS = 8192
"""Of which the covariance, in float64, takes half a gigabyte."""


class PCAFeaturesHyperparameters(HeadHyperparameters):
    components: Annotated[
        int, Field(ge=1, le=MOST_DIMENSIONS, description="principal components that are kept")
    ] = 64
    whiten: Annotated[
        bool, Field(description="divide each component by its standard deviation")
    ] = False


class PCAFeatures(UnsupervisedFeatures):
    """Principal component analysis, and a head on the components.

    Pearson, "On Lines and Planes of Closest Fit to Systems of Points in Space", 1901,
    https://doi.org/10.1080/14786440109462720. Of the training items x, with what the backbone makes
    of them, f(x) (over `identity` their pixels), the mean m and the covariance
        C = 1 / (n - 1) * sum of (f(x) - m) (f(x) - m)^T = U diag(v) U^T             (1)
    are found in one pass in float64, exactly. With the K largest v, and their eigenvectors U_K,
        z = U_K^T (f(x) - m), each component divided by sqrt(v) if whitened           (2)
    are the features. The head `cnn` sees the items as these components show them,
        m + U_K U_K^T (f(x) - m),                                                    (3)
    in the shape of the backbone's map, or of the image over `identity`.

    Differs: an eigenvector's sign is such that its largest entry is positive. A backbone with
    weights has those that it was drawn or loaded with: nothing trains it.
    """

    name = "pca-features"
    reference = "Pearson 1901, doi:10.1080/14786440109462720"
    summary = "Principal components of the training items, fitted without labels, and a head."
    hyperparameters = PCAFeaturesHyperparameters

    hp: PCAFeaturesHyperparameters
    mean: Tensor
    components: Tensor
    variances: Tensor

    def build_features(self) -> None:
        size = self.backbone.feature_dim  # D
        if size > MOST_DIMENSIONS:
            raise UsageError(
                f"pca-features of {size} dimensions would need a covariance of {size} x {size}",
                f"choose a backbone of {MOST_DIMENSIONS} features or fewer, or smaller images",
            )
        self.code_dim = min(self.hp.components, size)
        self.map_shape = _map_shape(self.backbone.feature_map, self.problem.item.shape, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(self.code_dim, size))  # (K, D)
        self.register_buffer("variances", torch.ones(self.code_dim))

    def fitting(self, recipe: Recipe) -> list[Phase]:
        return [Fit(self.fit, name="pca")]

    def fit(self, batches: Iterator[ItemBatch], ctx: Context) -> None:
        """(1) over all training items."""
        mean, covariance = moments(self.backbone(batch.data) for batch in batches)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        kept = vectors.flip(1)[:, : self.code_dim].mT  # (K, D)
        largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(kept * largest.sign())
        # Where there are fewer items than components, rounding may have left less than nothing.
        least = values[-1] * torch.finfo(values.dtype).eps
        self.variances.copy_(values.flip(0)[: self.code_dim].clamp(min=least))

    def projected(self, data: PyTree) -> Tensor:
        """(2) without whitening, (n, K)."""
        found: Tensor = (self.backbone(data) - self.mean) @ self.components.mT
        return found

    def code(self, data: PyTree) -> Tensor:
        found = self.projected(data)
        return found * self.variances.rsqrt() if self.hp.whiten else found

    def code_map(self, data: PyTree) -> Tensor:
        """(3)."""
        assert self.map_shape is not None
        seen: Tensor = self.mean + self.projected(data) @ self.components
        return seen.reshape(-1, *self.map_shape)


def moments(batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean (D,) and covariance (D, D) of (1) of all rows (n, D), in float64, in one pass."""
    count, origin = 0, torch.empty(0)
    total = products = origin
    for batch in batches:
        rows = batch.double()
        if count == 0:
            # Near the mean, so that the difference of two large numbers is never taken.
            origin = rows.mean(0)
            total, products = torch.zeros_like(origin), rows.new_zeros(len(origin), len(origin))
        rows = rows - origin
        count += len(rows)
        total += rows.sum(0)
        products += rows.mT @ rows
    offset = total / count
    return origin + offset, (products - count * torch.outer(offset, offset)) / max(1, count - 1)


def _map_shape(
    of_backbone: tuple[int, int, int] | None, of_item: tuple[int, ...], size: int
) -> tuple[int, int, int] | None:
    """The (C, H, W) that so many features are flattened from: of the backbone, or of the image."""
    for shape in (of_backbone, of_item):
        if shape is not None and len(shape) == 3 and math.prod(shape) == size:
            return shape[0], shape[1], shape[2]
    return None
