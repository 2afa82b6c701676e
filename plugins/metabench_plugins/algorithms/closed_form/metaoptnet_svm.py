"""MetaOptNet with a support vector machine, differentiated by the implicit function theorem."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from metabench import Field, Hyperparameters, Recipe
from metabench_plugins.algorithms.closed_form.crammer_singer import crammer_singer
from metabench_plugins.algorithms.closed_form.linear_head import LinearHead, identity_like


class MetaOptNetSVMHyperparameters(Hyperparameters):
    cost: Annotated[float, Field(gt=0, description="C, the cost of a violated margin")] = 0.1
    ridge: Annotated[
        float,
        Field(ge=1e-3, description="added to the kernel's diagonal: the dual has one optimum"),
    ] = 1.0
    scale: Annotated[
        float, Field(gt=0, description="gamma, the scale of the logits, as training begins")
    ] = 1.0
    solver_steps: Annotated[
        int, Field(ge=1, le=100, description="steps of the interior-point method")
    ] = 30


class MetaOptNetSVM(LinearHead):
    """MetaOptNet-SVM.

    Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto, "Meta-Learning with
    Differentiable Convex Optimization", 2019, https://arxiv.org/abs/1904.03758, and the authors'
    code. Equations are numbered as they stand here.

    The multi-class support vector machine of Crammer and Singer on support features X (S x D),
        min over W of  1/2 |W|^2 + C sum over i of max over n of
            (1 - [n = y_i]) - x_i (w_{y_i} - w_n)                                  (1)
    is solved by its dual, with one-hot labels Y (S x N):
        min over a of  1/2 tr a^T (X X^T + ridge I) a - tr Y^T a
        such that  a <= C Y  and each item's a sum to 0                            (2)
    A query with features x gets the logits
        gamma x X^T a                                                              (3)
    The cross-entropy of the queries trains the backbone through the solution, by the implicit
    function theorem, and the scale gamma. The ridge of 1 is that of the authors' code; the
    paper's own dual is (2) with none.

    Differs: (2) is solved until it is known which bounds hold (`solver_steps`), then exactly, and
    differentiated there, where the authors stop their interior-point method at 15 steps, mostly in
    float32, and differentiate what they have. For the authors' training, see `metaoptnet-ridge`.
    """

    name = "metaoptnet-svm"
    family = "closed-form"
    reference = "Lee et al. 2019, arXiv:1904.03758"
    summary = "A support vector machine on the support set, differentiated implicitly."
    hyperparameters: ClassVar[type[Hyperparameters]] = MetaOptNetSVMHyperparameters
    recipe = Recipe(steps=2000, ways=10, queries=10, validate_every=500)

    hp: MetaOptNetSVMHyperparameters

    def build(self) -> None:
        self.scale = nn.Parameter(torch.tensor(self.hp.scale))

    def solve(self, gram: Tensor, labels: Tensor) -> Tensor:
        kernel = gram + self.hp.ridge * identity_like(gram)
        dual = crammer_singer(kernel, labels, self.hp.cost, self.hp.solver_steps)  # (2)
        return self.scale * dual  # gamma of (3)
