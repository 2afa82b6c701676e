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
    Lazy(
        "finetune",
        f"{__name__}.finetune:FineTune",
        family="transfer",
        inference="inductive",
        reference="Chen et al. 2019, arXiv:1904.04232; Hu et al. 2021, arXiv:2106.09685",
        summary="Pre-trained weights, or a part of them, descend on the support set.",
    ),
    Lazy(
        "meta-model",
        f"{__name__}.meta_model:MetaModel",
        family="transfer",
        inference="inductive",
        reference="Wang et al. 2021, arXiv:2106.09017",
        summary="A backbone trained under a fixed set of tasks, each with a classifier of its own.",
    ),
)
