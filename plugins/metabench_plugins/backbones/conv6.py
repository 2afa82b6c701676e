"""The six-block convolutional network of the closer look at few-shot classification."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import nn

from metabench_plugins.backbones.conv4 import Conv4, Draw


class Conv6(Conv4):
    """Conv4 with two more blocks behind, which don't halve the map.

    Chen et al., "A Closer Look at Few-shot Classification", 2019, section 4.1 and the authors'
    code: 64 channels, max-pooling in the first four blocks only, flattened: 1600 features of an
    84 x 84 image, as conv4 has. Weights are drawn from He's normal distribution over the fan out,
    as there.

    Differs: biases start at 0, which behind a batch norm changes nothing; strides and the spatial
    mean (`downsample`, `pooling`) are conv4's and not in the paper.
    """

    name = "conv6"
    reference = "Chen et al. 2019, arXiv:1904.04232"
    summary = "Six blocks of 3x3 convolution, batch norm and ReLU; the first four halve the map."
    depth: ClassVar[int] = 6
    draw: ClassVar[Draw] = staticmethod(
        partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
    )
