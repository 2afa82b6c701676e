"""Optimisation-based: a support set changes the network's parameters by gradient steps."""

from metabench import Lazy

ALGORITHMS: tuple[Lazy, ...] = (
    Lazy(
        "maml",
        f"{__name__}.maml:MAML",
        family="optimisation",
        inference="inductive",
        reference="Finn et al. 2017, arXiv:1703.03400",
        summary="Learns an initialisation from which a few gradient steps solve a new task.",
    ),
    Lazy(
        "fomaml",
        f"{__name__}.fomaml:FOMAML",
        family="optimisation",
        inference="inductive",
        reference="Finn et al. 2017, arXiv:1703.03400",
        summary="MAML without second derivatives: the gradient at the adapted parameters.",
    ),
    Lazy(
        "anil",
        f"{__name__}.anil:ANIL",
        family="optimisation",
        inference="inductive",
        reference="Raghu et al. 2020, arXiv:1909.09157",
        summary="MAML whose inner loop adapts the head only.",
    ),
    Lazy(
        "reptile",
        f"{__name__}.reptile:Reptile",
        family="optimisation",
        inference="inductive",
        reference="Nichol et al. 2018, arXiv:1803.02999",
        summary="Moves the initialisation towards the weights that training on a task reaches.",
    ),
)
