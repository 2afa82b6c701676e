"""First-order MAML: MAML with the second derivatives left out."""

from __future__ import annotations

from metabench import GradientHyperparameters, Recipe
from metabench_plugins.algorithms.optimisation.maml import MAML


class FOMAML(MAML):
    """Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks".

    ICML 2017, https://arxiv.org/abs/1703.03400, section 5.2, "first-order approximation". The inner
    loop is MAML's, but its gradients count as constants in the outer loop. So the meta-gradient
    is the gradient of the query loss at the adapted weights, at the cost of plain training.

    In MAML's terms, with phi = theta - alpha * (sum of the inner gradients g_t):
        grad_theta L(phi; queries) = (d phi / d theta)^T grad_phi L(phi; queries)
        d phi / d theta = 1, as each d g_t / d theta is taken for 0                (1)
        theta <- theta - beta * grad_phi L(phi; queries)                           (2)

    What differs: as in MAML (the loss is a mean; batch norm by the support set's moments). Those
    moments are no inner gradients: the outer gradient goes through them.
    """

    name = "fomaml"
    reference = "Finn et al. 2017, arXiv:1703.03400"
    summary = "MAML without second derivatives: the gradient at the adapted parameters."
    hyperparameters = GradientHyperparameters
    recipe = Recipe(steps=1300, meta_batch=2, lr=3e-3, validate_every=260)
    order = 1  # (1): `unroll` takes the inner gradients as constants
