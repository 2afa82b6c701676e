"""CAVIA: the inner loop adapts a few context parameters, which modulate a shared network."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    BatchNorm,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    PyTree,
    Recipe,
    UsageError,
)

Tensors = dict[str, Tensor]
CONTEXT, FILM = "context", "film"


class CAVIAHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="learning rate of the context")] = 10.0
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 2
    context_size: Annotated[int, Field(ge=1, le=100_000, description="context parameters")] = 100
    layer: Annotated[
        int,
        Field(
            ge=-1000,
            lt=1000,
            description="number of the batch norm that is modulated; -1: the backbone's last",
        ),
    ] = -2


class CAVIA(GradientAlgorithm):
    """Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning".

    ICML 2019, https://arxiv.org/abs/1810.03642, sections 3.2 and 3.4. The network's weights theta
    are the same for all tasks; what a task changes is an input of the network, the context phi, a
    hundred numbers which start at zero.

    Inner loop from phi = 0:
        phi <- phi - alpha * grad_phi L(phi, theta; support)                       (1)
    Outer loop, through the inner steps:
        theta <- theta - beta * grad_theta of the mean over tasks of L(phi_i, theta; queries_i)  (2)
    The context modulates a layer's maps h channel by channel (FiLM), before the activation:
        h' = gamma o h + delta,   (gamma, delta) = A phi + b, with A and b in theta    (3)

    The layer is a batch norm of the backbone, as in the authors' code, where it is the third of
    four; its output gamma o (w o x + v) + delta is that of scale gamma o w and shift
    gamma o v + delta, so (3) is done by handing it those.

    What differs:
    - Where a backbone max-pools, (3) comes before the pooling, in the authors' code after it: the
      same as long as gamma is positive. With strides there is no difference.
    - gamma starts near 1 (b is 1 there, and 0 for delta), so that the network starts as the plain
      one; the authors draw b near 0.
    - The default `inner_lr` is for a thousand meta-steps; the authors' is 1, for 60,000 (5-way
      mini-ImageNet), with as many inner steps and context parameters as here.
    - The authors clip each number of the outer gradient at 10 (the recipe has `clip_norm`).
    - As in MAML: batch norm by the support set's moments, where theirs takes the queries' own.
    """

    name = "cavia"
    reference = "Zintgraf et al. 2019, arXiv:1810.03642"
    summary = "Adapts a small context vector that modulates a layer of a shared network."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = CAVIAHyperparameters
    recipe = Recipe(steps=1000, meta_batch=4, lr=3e-3, validate_every=200)

    def build(self) -> None:
        super().build()
        self.norm, channels = self._modulated()
        self.film = nn.Linear(self.hp.context_size, 2 * channels)
        nn.init.kaiming_uniform_(self.film.weight, nonlinearity="linear")  # as the authors'
        with torch.no_grad():
            self.film.bias.copy_(torch.arange(2 * channels) < channels)
        # Where phi starts; it isn't trained.
        self.context = nn.Parameter(torch.zeros(self.hp.context_size), requires_grad=False)

    def _modulated(self) -> tuple[str, int]:
        """The name of the batch norm of (3), and how many channels it has."""
        norms = [
            (name, layer.channels)
            for name, layer in self.named_modules()
            if isinstance(layer, BatchNorm) and layer.weight is not None
        ]
        if not -len(norms) <= self.hp.layer < len(norms):
            raise UsageError(
                f"cavia modulates batch norm {self.hp.layer} of the backbone, and "
                f"{self.backbone.name} has {len(norms)} of them",
                "choose another layer or backbone, such as conv4",
            )
        found: tuple[str, int] = norms[self.hp.layer]
        return found

    def adapted_names(self) -> list[str]:
        return [CONTEXT]

    def run(
        self, params: Tensors, buffers: Tensors, data: PyTree, mode: Any
    ) -> tuple[Tensor, Tensors]:
        """As any network's, under a context."""
        theta: Tensors = {**dict(self.named_parameters()), **params}
        both = F.linear(theta[CONTEXT], theta[f"{FILM}.weight"], theta[f"{FILM}.bias"])  # (2 C,)
        gamma, delta = both.chunk(2)
        weight, bias = f"{self.norm}.weight", f"{self.norm}.bias"
        modulated = {weight: gamma * theta[weight], bias: gamma * theta[bias] + delta}  # (3)
        return super().run({**params, **modulated}, buffers, data, mode)
