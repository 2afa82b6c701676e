"""Transductive: the queries of an episode are predicted together; ranked apart."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "bd-cspn",
        f"{__name__}.bd_cspn:BDCSPN",
        family="transductive",
        inference="transductive",
        reference="Liu et al. 2020, arXiv:1911.10713",
        summary="Prototypes rectified by queries that were moved onto the support set.",
    ),
    Lazy(
        "laplacian-shot",
        f"{__name__}.laplacian_shot:LaplacianShot",
        family="transductive",
        inference="transductive",
        reference="Ziko et al. 2020, arXiv:2006.15486",
        summary="Nearest prototypes, regularised so that neighbouring queries agree.",
    ),
    Lazy(
        "pt-map",
        f"{__name__}.pt_map:PTMAP",
        family="transductive",
        inference="transductive",
        reference="Hu et al. 2021, arXiv:2006.03806",
        summary="Power-transformed features, queries assigned to classes by optimal transport.",
    ),
    Lazy(
        "tim",
        f"{__name__}.tim:TIM",
        family="transductive",
        inference="transductive",
        reference="Boudiaf et al. 2020, arXiv:2008.11297",
        summary="Fits a classifier that maximises the mutual information of queries and labels.",
    ),
    Lazy(
        "transductive-finetuning",
        f"{__name__}.transductive_finetuning:TransductiveFinetuning",
        family="transductive",
        inference="transductive",
        reference="Dhillon et al. 2020, arXiv:1909.02729",
        summary="Fine-tunes on the support set's labels and the entropy of the queries.",
    ),
)
