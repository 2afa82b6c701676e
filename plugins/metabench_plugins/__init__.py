"""The built-in plugins, registered through the same hooks as anybody's.

Every entry is lazy: its facts stand here, its class is imported when it is used. A test holds the
facts and the class together.
"""

from __future__ import annotations

from pathlib import Path

from metabench import Lazy, hookimpl

_HERE = "metabench_plugins"

ALGORITHMS = (
    Lazy(
        "maml",
        f"{_HERE}.algorithms.maml:MAML",
        family="optimisation",
        inference="inductive",
        reference="Finn et al. 2017, arXiv:1703.03400",
        summary="Learns an initialisation from which a few gradient steps solve a new task.",
    ),
    Lazy(
        "fomaml",
        f"{_HERE}.algorithms.fomaml:FOMAML",
        family="optimisation",
        inference="inductive",
        reference="Finn et al. 2017, arXiv:1703.03400",
        summary="MAML without second derivatives: the gradient at the adapted parameters.",
    ),
    Lazy(
        "anil",
        f"{_HERE}.algorithms.anil:ANIL",
        family="optimisation",
        inference="inductive",
        reference="Raghu et al. 2020, arXiv:1909.09157",
        summary="MAML whose inner loop adapts the head only.",
    ),
    Lazy(
        "reptile",
        f"{_HERE}.algorithms.reptile:Reptile",
        family="optimisation",
        inference="inductive",
        reference="Nichol et al. 2018, arXiv:1803.02999",
        summary="Moves the initialisation towards the weights that training on a task reaches.",
    ),
    Lazy(
        "protonet",
        f"{_HERE}.algorithms.protonet:ProtoNet",
        family="metric",
        inference="inductive",
        reference="Snell et al. 2017, arXiv:1703.05175",
        summary="Classifies a query by its distance to the mean embedding of each class.",
    ),
    Lazy(
        "matching-networks",
        f"{_HERE}.algorithms.matching_networks:MatchingNetworks",
        family="metric",
        inference="inductive",
        reference="Vinyals et al. 2016, arXiv:1606.04080",
        summary="Classifies a query by attention over the support set's embeddings.",
    ),
    Lazy(
        "relation-network",
        f"{_HERE}.algorithms.relation_network:RelationNetwork",
        family="metric",
        inference="inductive",
        reference="Sung et al. 2018, arXiv:1711.06025",
        summary="Learns the comparison itself: a network scores pairs of query and class.",
    ),
    Lazy(
        "baseline",
        f"{_HERE}.algorithms.baseline:Baseline",
        family="transfer",
        inference="inductive",
        reference="Chen et al. 2019, arXiv:1904.04232",
        summary="Supervised pre-training, then a linear head fitted on the support set.",
    ),
    Lazy(
        "nearest-centroid",
        f"{_HERE}.algorithms.nearest_centroid:NearestCentroid",
        family="transfer",
        inference="inductive",
        reference="Wang et al. 2019, arXiv:1911.04623",
        summary="SimpleShot: nearest class mean of pre-trained, normalised features.",
    ),
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
