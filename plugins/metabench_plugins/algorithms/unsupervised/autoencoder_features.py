"""The bottleneck of an autoencoder as features."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    Backbone,
    Batches,
    Context,
    Field,
    ItemBatch,
    Phase,
    PyTree,
    Recipe,
    UsageError,
)
from metabench_plugins.algorithms.unsupervised.heads import (
    HeadHyperparameters,
    UnsupervisedFeatures,
)

FEWEST_CHANNELS = 8
Decoder = Literal["linear", "dense", "conv"]


class AutoencoderFeaturesHyperparameters(HeadHyperparameters):
    bottleneck: Annotated[
        int, Field(ge=1, le=65_536, description="features between encoder and decoder")
    ] = 64
    decoder: Annotated[
        Decoder,
        Field(description="from bottleneck to item: one layer, two, or transposed convolutions"),
    ] = "dense"
    hidden: Annotated[
        int, Field(ge=1, le=65_536, description="units between the dense decoder's two layers")
    ] = 256


class Autoencoder(nn.Module):
    """Backbone, a linear layer to the bottleneck, and a decoder back to items.

    Args:
        encoder: the backbone.
        bottleneck: from its features to the bottleneck.
        decoder: from there to the values of an item, flat or in its shape.
    """

    def __init__(self, encoder: Backbone, bottleneck: nn.Linear, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder

    def forward(self, data: PyTree) -> Tensor:
        """Items (n, ...) as they come back."""
        found: Tensor = self.decoder(self.bottleneck(self.encoder(data)))
        return found.reshape(data.shape)


class ConvDecoder(nn.Module):
    """A linear layer to a map, which transposed convolutions double until it covers the image.

    Each doubling, 4 x 4 with stride 2, halves the channels; a 3 x 3 convolution makes the image.
    """

    def __init__(
        self, inputs: int, map_shape: tuple[int, int, int], image: tuple[int, int, int]
    ) -> None:
        super().__init__()
        channels, height, width = map_shape
        self.map_shape, self.image = map_shape, image
        self.to_map = nn.Linear(inputs, math.prod(map_shape))
        times = math.ceil(math.log2(max(1, image[1] / height, image[2] / width)))
        self.doubling = nn.ModuleList()
        for _ in range(times):
            fewer = max(FEWEST_CHANNELS, channels // 2)
            self.doubling.append(nn.ConvTranspose2d(channels, fewer, 4, stride=2, padding=1))
            channels = fewer
        self.to_image = nn.Conv2d(channels, image[0], 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        """(n, K) to (n, C, H, W); what is too much at the bottom and right is cut off."""
        maps = F.relu(self.to_map(code)).reshape(-1, *self.map_shape)
        for layer in self.doubling:
            maps = F.relu(layer(maps))
        image: Tensor = self.to_image(maps)
        return image[:, :, : self.image[1], : self.image[2]]


class AutoencoderFeatures(UnsupervisedFeatures):
    """An autoencoder, and a head on what is in its middle.

    Hinton, Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006,
    https://doi.org/10.1126/science.1127647. The backbone f is the encoder; on the training items x,
    without labels,
        z = A f(x) + a                                                               (1)
        min over f, A, a and the decoder g of the mean square of g(z) - x            (2)
    z, of `bottleneck` numbers, are the features. The head `cnn` sees the backbone's last map.

    (2) doesn't depend on the head: it is trained once for all heads, with the row's recipe. Over
    `identity` and with a linear decoder its optimum spans the principal components (Baldi and
    Hornik 1989, doi:10.1016/0893-6080(89)90014-2).

    Differs: trained from random weights by the recipe's optimiser, not layer by layer before; the
    decoder isn't the encoder turned round; items are real numbers with a squared error, not bits.
    """

    name = "autoencoder-features"
    reference = "Hinton and Salakhutdinov 2006, doi:10.1126/science.1127647"
    summary = "The bottleneck of an autoencoder, trained without labels, and a head."
    hyperparameters = AutoencoderFeaturesHyperparameters

    hp: AutoencoderFeaturesHyperparameters

    def build_features(self) -> None:
        if self.problem.item.kind == "tokens":
            raise UsageError("autoencoder-features takes items of real numbers, not tokens")
        self.code_dim, self.map_shape = self.hp.bottleneck, self.backbone.feature_map
        self.bottleneck = nn.Linear(self.backbone.feature_dim, self.code_dim)

    def fitting(self, recipe: Recipe) -> list[Phase]:
        module = Autoencoder(self.backbone, self.bottleneck, self.decoder())
        return [
            Batches(
                recipe, module, reconstruction_loss, shared=True, name="autoencoder", labels=False
            )
        ]

    def decoder(self) -> nn.Module:
        """A new decoder; only the encoder is kept."""
        shape = self.problem.item.shape
        values, hidden = math.prod(shape), self.hp.hidden
        if self.hp.decoder == "linear":
            return nn.Linear(self.code_dim, values)
        if self.hp.decoder == "dense":
            layers = nn.Linear(self.code_dim, hidden), nn.Linear(hidden, values)
            return nn.Sequential(layers[0], nn.ReLU(), layers[1])
        if self.map_shape is None or len(shape) != 3:
            raise UsageError(
                "autoencoder-features with decoder = 'conv' needs images and a backbone with maps, "
                f"which {self.backbone.name} hasn't",
                "choose conv4 or resnet12, or decoder = 'dense'",
            )
        return ConvDecoder(self.code_dim, self.map_shape, (shape[0], shape[1], shape[2]))

    def code(self, data: PyTree) -> Tensor:
        found: Tensor = self.bottleneck(self.backbone(data))  # (1)
        return found

    def code_map(self, data: PyTree) -> Tensor:
        return self.backbone.forward_map(data)


def reconstruction_loss(module: nn.Module, batch: ItemBatch, ctx: Context) -> Tensor:
    """(2)."""
    return F.mse_loss(module(batch.data), batch.data)
