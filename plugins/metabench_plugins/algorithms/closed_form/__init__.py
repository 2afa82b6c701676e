"""Closed-form heads: a small convex problem on the support set, solved in each episode."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "r2d2",
        f"{__name__}.r2d2:R2D2",
        family="closed-form",
        inference="inductive",
        reference="Bertinetto et al. 2019, arXiv:1805.08136",
        summary="Ridge regression on the support set, through which the backbone is trained.",
    ),
    Lazy(
        "lr-d2",
        f"{__name__}.lr_d2:LRD2",
        family="closed-form",
        inference="inductive",
        reference="Bertinetto et al. 2019, arXiv:1805.08136",
        summary="Logistic regression on the support set by Newton steps, differentiated.",
    ),
    Lazy(
        "metaoptnet-ridge",
        f"{__name__}.metaoptnet_ridge:MetaOptNetRidge",
        family="closed-form",
        inference="inductive",
        reference="Lee et al. 2019, arXiv:1904.03758",
        summary="Ridge regression with a fixed penalty and a learned scale, differentiated.",
    ),
    Lazy(
        "metaoptnet-svm",
        f"{__name__}.metaoptnet_svm:MetaOptNetSVM",
        family="closed-form",
        inference="inductive",
        reference="Lee et al. 2019, arXiv:1904.03758",
        summary="A support vector machine on the support set, differentiated implicitly.",
    ),
)
