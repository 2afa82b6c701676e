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
    Lazy(
        "baseline++",
        f"{__name__}.baseline_pp:BaselinePP",
        family="metric",
        inference="inductive",
        reference="Chen et al. 2019, arXiv:1904.04232",
        summary="Pre-training with a cosine classifier, then another fitted on the support set.",
    ),
    Lazy(
        "feat",
        f"{__name__}.feat:FEAT",
        family="metric",
        inference="inductive",
        reference="Ye et al. 2020, arXiv:1812.03664",
        summary="Prototypical networks whose prototypes a transformer adapts to one another.",
    ),
    Lazy(
        "gnn",
        f"{__name__}.gnn:GNN",
        family="metric",
        inference="inductive",
        reference="Garcia and Bruna 2018, arXiv:1711.04043",
        summary="A graph of the support set and a query, its edges learned, passes labels on.",
    ),
)
