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
    task_to_parameters,
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
    *task_to_parameters.ALGORITHMS,
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
