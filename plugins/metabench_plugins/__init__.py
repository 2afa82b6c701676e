"""The built-in plugins, registered through the same hooks as anybody's.

Every entry is lazy: its facts stand here (an algorithm's with its family), its class is imported
when it is used. A test holds the facts and the class together.
"""

from __future__ import annotations

from pathlib import Path

from metabench import Lazy, hookimpl
from metabench_plugins.algorithms import (
    closed_form,
    metric,
    optimisation,
    task_mapping,
    transductive,
    transfer,
    unsupervised,
)

_HERE = "metabench_plugins"

ALGORITHMS = (
    *optimisation.ALGORITHMS,
    *metric.ALGORITHMS,
    *closed_form.ALGORITHMS,
    *transfer.ALGORITHMS,
    *task_mapping.ALGORITHMS,
    *unsupervised.ALGORITHMS,
    *transductive.ALGORITHMS,
)

BACKBONES = (
    Lazy(
        "conv4",
        f"{_HERE}.backbones.conv4:Conv4",
        family="network",
        reference="Vinyals et al. 2016, arXiv:1606.04080",
        summary="Four blocks of 3x3 convolution, batch norm and ReLU; max-pool or stride.",
    ),
    Lazy(
        "resnet12",
        f"{_HERE}.backbones.resnet12:ResNet12",
        family="network",
        reference="Lee et al. 2019, arXiv:1904.03758",
        summary="The 12-layer residual network of MetaOptNet, with DropBlock.",
    ),
    Lazy(
        "conv6",
        f"{_HERE}.backbones.conv6:Conv6",
        family="network",
        reference="Chen et al. 2019, arXiv:1904.04232",
        summary="Six blocks of 3x3 convolution, batch norm and ReLU; the first four halve the map.",
    ),
    Lazy(
        "resnet10",
        f"{_HERE}.backbones.resnet:ResNet10",
        family="network",
        reference="Chen et al. 2019, arXiv:1904.04232",
        summary="Residual network of 10 layers, of the closer look at few-shot classification.",
    ),
    Lazy(
        "resnet18",
        f"{_HERE}.backbones.resnet:ResNet18",
        family="network",
        reference="He et al. 2016, arXiv:1512.03385",
        summary="Residual network of 18 layers, for images of any size.",
    ),
    Lazy(
        "wrn-28-10",
        f"{_HERE}.backbones.wrn:WRN",
        family="network",
        reference="Zagoruyko and Komodakis 2016, arXiv:1605.07146",
        summary="A wide residual network of 28 layers, the usual one of few-shot transfer.",
    ),
    Lazy(
        "lstm",
        f"{_HERE}.backbones.lstm:LSTM",
        family="network",
        reference="Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735",
        summary="An LSTM that reads the rows of an image as a sequence.",
    ),
    Lazy(
        "torchvision",
        f"{_HERE}.backbones.torchvision_networks:Torchvision",
        family="network",
        reference="torchvision, https://docs.pytorch.org/vision/stable/models.html",
        summary="Any classification network of torchvision by name, its head taken off.",
        argument="network",
    ),
    Lazy(
        "timm",
        f"{_HERE}.backbones.timm_networks:Timm",
        family="network",
        reference="Wightman 2019, doi:10.5281/zenodo.4414861",
        summary="Any network of timm by name, its head taken off; needs the extra timm.",
        argument="network",
    ),
    Lazy(
        "mlp",
        f"{_HERE}.backbones.mlp:MLP",
        family="network",
        reference="Finn et al. 2017, arXiv:1703.03400",
        summary="Fully connected layers on the flattened item.",
    ),
    Lazy(
        "identity",
        f"{_HERE}.backbones.identity:Identity",
        family="fixed",
        reference="no paper: it computes nothing",
        summary="The flattened item itself; nothing is learnt.",
    ),
)

DATASETS = (
    Lazy(
        "quickdraw",
        f"{_HERE}.datasets.quickdraw:QuickDraw",
        family="images",
        reference="Ha and Eck 2017, arXiv:1704.03477",
        summary="345 classes of 100 line drawings at 28x28, in the package: works offline.",
    ),
    Lazy(
        "omniglot",
        f"{_HERE}.datasets.omniglot:Omniglot",
        family="images",
        reference="Lake et al. 2015, doi:10.1126/science.aab3050",
        summary="1,623 handwritten characters of 50 alphabets, 20 drawings of each.",
    ),
)


@hookimpl
def metabench_register_algorithms() -> tuple[Lazy, ...]:
    return ALGORITHMS


@hookimpl
def metabench_register_backbones() -> tuple[Lazy, ...]:
    return BACKBONES


@hookimpl
def metabench_register_datasets() -> tuple[Lazy, ...]:
    return DATASETS


@hookimpl
def metabench_register_suites() -> list[Path]:
    return sorted((Path(__file__).parent / "suites").glob("*.toml"))
