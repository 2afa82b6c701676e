"""iMAML: the outer gradient from what the inner solution satisfies, not from the way to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, vjp

from metabench import (
    Context,
    EpisodeBatch,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    PyTree,
    Recipe,
    over_tasks,
    query_cross_entropy,
)

Tensors = dict[str, Tensor]


class IMAMLHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="inner-loop learning rate (alpha)")] = 0.1
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 10
    proximal: Annotated[
        float, Field(gt=0, description="weight of the distance from the initialisation (lambda)")
    ] = 2.0
    cg_steps: Annotated[
        int, Field(ge=0, le=1000, description="steps of conjugate gradients; 0: first order")
    ] = 5
    damping: Annotated[
        float, Field(ge=0, description="added to the 1 of 1 + H / lambda; the authors' code: 1")
    ] = 0.0
    curvature_damping: Annotated[
        float, Field(ge=0, description="added to the lambda under H; the authors' code: 10")
    ] = 0.0


class IMAML(GradientAlgorithm):
    """Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients".

    NeurIPS 2019, https://arxiv.org/abs/1909.04630, Algorithms 1 and 2. The inner problem is kept
    near theta by a proximal term, so that it has a solution whatever the way to it (equation 3):
        phi* = argmin over phi of L(phi; support) + lambda / 2 |phi - theta|^2     (1)
    here by gradient descent:
        phi <- phi - alpha * (grad_phi L(phi; support) + lambda (phi - theta))     (2)
    There grad L(phi*) = lambda (theta - phi*); its derivative by theta gives (equation 6)
        d phi* / d theta = (1 + H / lambda)^-1,   H the Hessian of L(.; support) at phi*    (3)
    so a task's part of the outer gradient is the g with (equation 7)
        (1 + H / lambda) g = grad_phi L(phi*; queries)                             (4)
    found by conjugate gradients, which need products with H only. Nothing is kept of the inner
    steps, so memory is that of one step, however many there are.

    (3) holds at the solution of (1). (4) is taken where a finite number of steps (2) ended, and is
    solved by a finite number of steps, so g is an approximation: neither the gradient through the
    exact solution, nor the one through the steps. By theorem 1 of the paper, where (1) is strongly
    convex, enough of both (`inner_steps`, `cg_steps`) bring it as near to the former as one likes.

    What differs:
    - The authors' code solves (1 + damping + H / (lambda + curvature_damping)) g = ... with 1 and
      10; 0 and 0, the defaults here, are (4). Damping makes the system better conditioned, and g
      shorter and another one: a damping of 1 halves it where H is small beside lambda. Its inner
      loop descends L alone and takes one step of the proximal term at the end, where this one is
      (2), as the paper has it.
    - H of a network needn't leave (4) positive definite: of a small convolutional one it had
      eigenvalues down to -10, so a lambda of 2, the paper's, isn't enough, and the authors'
      damping is. Where a direction without positive curvature is met, the solver stops at what it
      has, and has the right-hand side at first (Steihaug 1983); the paper and the code go on.
    - The solver takes a fixed number of steps, not a tolerance: so no device is waited for.
    - As in MAML: batch norm by the support set's moments. For the queries these are a function of
      phi, through which the right-hand side's gradient goes.
    """

    name = "imaml"
    reference = "Rajeswaran et al. 2019, arXiv:1909.04630"
    summary = "MAML with an implicit outer gradient, found by conjugate gradients."
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = IMAMLHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, validate_every=200)
    order = 1  # nothing goes back through the inner steps
    tasks_apart = True

    def inner_state(self, adapted: Tensors) -> Tensors:
        return adapted  # theta, from which phi shall not go far

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Any, t: int
    ) -> tuple[Tensors, Any]:
        """The step (2)."""
        alpha, weight = self.hp.inner_lr, self.hp.proximal
        moved = {
            name: phi - alpha * (grads[name] + weight * (phi - opt_state[name]))
            for name, phi in params.items()
        }
        return moved, opt_state

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """The queries' loss at phi*, whose gradient by theta is the sum of the tasks' g of (4)."""
        with torch.no_grad():
            found = self.adapt(batch.support, ctx)["params"]
        phi: Tensors = {name: value.detach().requires_grad_() for name, value in found.items()}
        loss, wanted = self._at_the_queries(phi, batch, ctx)
        mode = self.support_mode(ctx)

        def one_task(here: Tensors, slope: Tensors, *support: Any) -> Tensors:
            return self._implicit(here, slope, support, mode)

        fixed = {name: value.detach() for name, value in phi.items()}
        items, labels = batch.support.items, batch.support.targets.values
        solved = over_tasks(one_task, fixed, wanted, items.data, labels, items.mask)
        own = dict(self.named_parameters())
        # Zero, and theta's gradient.
        parts = [((own[name] - own[name].detach()) * g.sum(0)).sum() for name, g in solved.items()]
        return loss.detach() + torch.stack(parts).sum()

    def _at_the_queries(
        self, phi: Tensors, batch: EpisodeBatch, ctx: Context
    ) -> tuple[Tensor, Tensors]:
        """The queries' loss at the tasks' phi (B, ...), and its gradient: the right side of (4)."""
        moments = self.norm_buffers()

        def one_task(here: Tensors, data: PyTree) -> PyTree:
            return self.task_state(here, moments, data)

        state = over_tasks(one_task, phi, batch.support.items.data)
        loss = query_cross_entropy(self.predict(state, batch.queries, ctx), batch.query_targets)
        slopes = torch.autograd.grad(loss, list(phi.values()), materialize_grads=True)
        return loss, dict(zip(phi, slopes, strict=True))

    def _implicit(self, phi: Tensors, wanted: Tensors, support: PyTree, mode: Any) -> Tensors:
        """The g of (4) of one task, from its phi and the right side."""
        moments = self.norm_buffers()

        def objective(here: Tensors) -> Tensor:
            loss: Tensor = self.inner_loss(here, moments, support, 0, mode)[0]
            return loss

        hessian = vjp(grad(objective), phi)[1]
        scale = 1 / (self.hp.proximal + self.hp.curvature_damping)

        def product(vector: Tensor) -> Tensor:
            curved = packed(hessian(unpacked(vector, phi))[0])
            result: Tensor = (1 + self.hp.damping) * vector + scale * curved
            return result

        solved = conjugate_gradients(product, packed(wanted), self.hp.cg_steps)
        return unpacked(solved, phi)


def conjugate_gradients(product: Callable[[Tensor], Tensor], wanted: Tensor, steps: int) -> Tensor:
    """Solve A x = wanted for x (P,), A symmetric, in so many steps from zero; 0 give `wanted`.

    Hestenes and Stiefel 1952. Where a direction without positive curvature is met, x stays what it
    is; if that is the first one, it is `wanted` (Steihaug 1983, doi:10.1137/0720042).

    Args:
        product: v -> A v.
    """
    # Not task-mapping's: that one solves many systems to a tolerance, which waits for the device,
    # and A is positive definite there. This one runs in a training step, and A may be anything.
    if steps == 0:
        return wanted
    x, residual, direction = torch.zeros_like(wanted), wanted, wanted
    size = residual @ residual
    going = torch.ones_like(size, dtype=torch.bool)
    for step in range(steps):
        along = product(direction)
        curvature = direction @ along
        going = going & (curvature > 0)  # no branch on it, so nobody waits for its value
        rate = torch.where(going, size / curvature, 0.0 if step else 1.0)
        x, residual = x + rate * direction, residual - rate * along
        before, size = size, residual @ residual
        direction = residual + torch.where(going, size / before, 0.0) * direction
    return x


def packed(tensors: Tensors) -> Tensor:
    """(P,) all of them, end to end."""
    return torch.cat([value.flatten() for value in tensors.values()])


def unpacked(vector: Tensor, like: Tensors) -> Tensors:
    """(P,) back to named tensors of the shapes of `like`."""
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.view_as(v) for (name, v), part in zip(like.items(), parts, strict=True)}
