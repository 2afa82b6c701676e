"""Metric-based: a query is compared with the support set in a learnt space."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "protonet",
        f"{__name__}.protonet:ProtoNet",
        family="metric",
        inference="inductive",
        reference="Snell et al. 2017, arXiv:1703.05175",
        summary="Classifies a query by its distance to the mean embedding of each class.",
    ),
    Lazy(
        "matching-networks",
        f"{__name__}.matching_networks:MatchingNetworks",
        family="metric",
        inference="inductive",
        reference="Vinyals et al. 2016, arXiv:1606.04080",
        summary="Classifies a query by attention over the support set's embeddings.",
    ),
    Lazy(
        "relation-network",
        f"{__name__}.relation_network:RelationNetwork",
        family="metric",
        inference="inductive",
        reference="Sung et al. 2018, arXiv:1711.06025",
        summary="Learns the comparison itself: a network scores pairs of query and class.",
    ),
    Lazy(
        "nearest-centroid",
        f"{__name__}.nearest_centroid:NearestCentroid",
        family="metric",
        inference="inductive",
        reference="Wang et al. 2019, arXiv:1911.04623",
        summary="SimpleShot: nearest class mean of pre-trained, normalised features.",
    ),
)
