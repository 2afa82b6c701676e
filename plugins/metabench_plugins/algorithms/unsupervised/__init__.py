"""Unsupervised features: fitted on the training items without their labels."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "pca-features",
        f"{__name__}.pca_features:PCAFeatures",
        family="unsupervised",
        inference="inductive",
        reference="Pearson 1901, doi:10.1080/14786440109462720",
        summary="Principal components of the training items, fitted without labels, and a head.",
    ),
    Lazy(
        "autoencoder-features",
        f"{__name__}.autoencoder_features:AutoencoderFeatures",
        family="unsupervised",
        inference="inductive",
        reference="Hinton and Salakhutdinov 2006, doi:10.1126/science.1127647",
        summary="The bottleneck of an autoencoder, trained without labels, and a head.",
    ),
)
