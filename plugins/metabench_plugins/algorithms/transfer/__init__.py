"""Transfer: a network trained on the training classes, then fitted to the support set."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "baseline",
        f"{__name__}.baseline:Baseline",
        family="transfer",
        inference="inductive",
        reference="Chen et al. 2019, arXiv:1904.04232",
        summary="Supervised pre-training, then a linear head fitted on the support set.",
    ),
)
