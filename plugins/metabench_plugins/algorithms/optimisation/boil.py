"""BOIL: MAML whose inner loop adapts everything but the head."""

from __future__ import annotations

from typing import Annotated, ClassVar

from metabench import Field, GradientAlgorithm, GradientHyperparameters, Recipe, UsageError


class BOILHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="the body's learning rate (alpha_b)")] = 0.5
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 1


class BOIL(GradientAlgorithm):
    """Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning".

    ICLR 2021, https://arxiv.org/abs/2008.08882, section 3.1 (Body Only update in Inner Loop). Where
    ANIL lets a task change the classifier alone, BOIL forbids just that: the head is the same for
    all tasks, so a task has to move its features to where the head puts the classes.

    With the body theta_b (the backbone) and the head theta_h, MAML's inner loop with two rates:
        theta_b <- theta_b - alpha_b * grad_b L(theta_b, theta_h; support)         (1)
        theta_h <- theta_h - alpha_h * grad_h L(theta_b, theta_h; support)         (2)
    and alpha_h = 0, where MAML has alpha_h = alpha_b, and ANIL alpha_b = 0.
    Outer loop, over body *and* head, through the inner steps:
        min of the sum over tasks of L(theta_b,i, theta_h; queries_i)              (3)

    The defaults are the authors': one inner step of .5.

    What differs: as in MAML (the loss is a mean, here as in the authors' code; batch norm by the
    support set's moments, where their code takes the queries' own and is transductive).
    """

    name = "boil"
    reference = "Oh et al. 2021, arXiv:2008.08882"
    summary = "MAML whose inner loop adapts the backbone and leaves the head alone."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = BOILHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)

    def build(self) -> None:
        super().build()
        if not self.adapted_names():
            raise UsageError(
                f"boil adapts the backbone, and {self.backbone.name} has no parameters",
                "choose a backbone that learns, such as conv4",
            )

    def adapted_names(self) -> list[str]:  # (1), and nothing of (2)
        return [name for name, _ in self.named_parameters() if name.startswith("backbone.")]
