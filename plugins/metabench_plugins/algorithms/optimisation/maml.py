"""MAML: an initialisation from which a few gradient steps solve a new task."""

from __future__ import annotations

from typing import Annotated, ClassVar

from metabench import Field, GradientAlgorithm, GradientHyperparameters, Recipe


class MAMLHyperparameters(GradientHyperparameters):
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 3


class MAML(GradientAlgorithm):
    """Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks".

    ICML 2017, https://arxiv.org/abs/1703.03400, Algorithm 2. Each task starts from the same
    weights theta and takes a few gradient steps on its support set; theta is trained by gradient
    descent on the query loss of the *adapted* weights. That gradient goes through the inner steps,
    so it holds second derivatives of the support loss.

    Inner loop, repeated `inner_steps` times from phi = theta (section 2.2):
        phi <- phi - alpha * grad_phi L(phi; support)                              (1)
    Outer loop, over a meta-batch of tasks i:
        min over theta of the sum over i of L(phi_i(theta); queries_i)             (2)
        theta <- theta - beta * grad_theta of (2), here by the recipe's optimiser  (3)
    with L the cross-entropy (equation 3 of the paper). (3) is the paper's equation 1.

    All of it is what `GradientAlgorithm` does where nothing is overridden: `inner_update` is (1),
    `adapt` unrolls it with `order = 2`, and `training_loss` is (2) over the meta-batch.

    What differs:
    - L is a mean. The authors' code sums the loss over the N*K support items and divides by K, so
      `inner_lr` here is ways x their alpha (2.0 for their Omniglot settings).
    - (2) is divided by the number of tasks, which only scales the gradient.
    - Batch norm uses the moments of the support set (`batch_norm = "support"`). The authors' code
      normalises the queries by their own moments, which makes it transductive: that is
      `batch_norm = "batch"`.
    """

    name = "maml"
    reference = "Finn et al. 2017, arXiv:1703.03400"
    summary = "Learns an initialisation from which a few gradient steps solve a new task."
    # The inner loop sees the whole support set in each step. The head is learnt, class by class.
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = MAMLHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)
