"""MAML++: MAML with losses after each step, learned rates, and a batch norm for each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metabench import (
    BatchNorm,
    BatchNormOption,
    Context,
    EpisodeBatch,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    Inference,
    Items,
    PyTree,
    Recipe,
    Support,
    over_tasks,
    query_cross_entropy,
    unroll,
)

Tensors = dict[str, Tensor]


class MAMLPlusPlusHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[
        float, Field(gt=0, description="inner rates, or what the learned ones start from (alpha)")
    ] = 0.2
    batch_norm: Annotated[
        BatchNormOption, Field(description="whose moments batch norm uses; batch is transductive")
    ] = "batch"
    learned_rates: Annotated[
        bool, Field(description="learn an inner rate for each weight tensor and step (LSLR)")
    ] = True
    per_step_norm: Annotated[
        bool, Field(description="a batch norm for each inner step (BNRS and BNWB)")
    ] = True
    multi_step: Annotated[
        float,
        Field(ge=0, le=1, description="part of training until the last step's loss alone counts"),
    ] = 0.1
    first_order: Annotated[
        float, Field(ge=0, le=1, description="part of training, its first, of first order")
    ] = 0.33


class StepNorm(nn.Module):
    """A batch norm for each inner step, of which the one of the current step is in use.

    Attributes:
        steps: the batch norms; each begins as a copy of the backbone's own.
        current: the step, from 0; steps after the last one use the last one's.
    """

    def __init__(self, norm: BatchNorm, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(steps - 1))])
        self.current = steps - 1

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.steps[min(self.current, len(self.steps) - 1)](x)
        return normalised


class MAMLPlusPlus(GradientAlgorithm):
    """Antoniou, Edwards, Storkey, "How to train your MAML".

    ICLR 2019, https://arxiv.org/abs/1810.09502, section 4. MAML with six changes, each of which
    can be switched off; without all of them it is MAML.

    Inner loop on task i, t = 1 to T, over the weights phi_j of the network's tensors j, batch
    norm's left out, from phi = theta:
        phi_j <- phi_j - alpha_jt * the gradient by phi_j of L(phi, gamma_t, beta_t; support)  (1)
    with learned rates alpha (LSLR), and scales gamma_t, shifts beta_t and running moments of batch
    norm for each step (BNWB, BNRS). Outer loop, over theta, alpha, gamma and beta:
        min of the sum over i and t of v_t L(phi_i after t steps, gamma_t, beta_t; queries_i)  (2)
    the multi-step loss (MSL). Its weights, with s the part of training that is done, over the part
    of it that `multi_step` says:
        v_t = max(0, 1 - s) / T for t < T,   v_T = 1 - the sum of these                     (3)
    Derivative-order annealing (DA): (2) is differentiated as if the inner gradients were constants
    for the first part of training, and in full after it. The outer learning rate falls by a cosine
    (CA): that is the recipe's `schedule`.

    `inference` is transductive as published: in the authors' code each forward pass is
    normalised by its own batch, the queries by all queries. It gathers the running moments of each
    step, but no forward pass ever reads them. So here they are gathered where they are used, with
    `batch_norm = "running"`: from support sets, and the last step's from queries too; in the test
    the support set at step t, and the queries by the last step, are normalised by them. That,
    `"support"` and `"support+1"` are inductive. By default, then, a step has scales and shifts
    of its own, and no moments of its own that anybody reads.

    What differs:
    - The paper's (2) has a term for t = 0, before any step; the authors' code, as this, has none.
      The code keeps each early v_t at .03 / T at least, until it drops them all at s = 1.
    - The paper has first-order gradients for its first 50 epochs, the code's published settings of
      100 epochs for none of them; here it is a third of training. Multi-step losses last 10 epochs
      of these (Omniglot) or 15 (miniImageNet).
    - Steps at test beyond those of training use the rates and norms of the last.
    - The authors test an ensemble of their best epochs' models, and bound each number of the outer
      gradient by 10 on ImageNet (the recipe has `clip_norm`).
    - Their cosine is stepped once an epoch and falls from .001 to 1e-5 in the published settings of
      Omniglot; those of mini-ImageNet have .001 at both ends, so that the rate stays what it is.
      The recipe's is stepped with each meta-step, and would be 0 after the last. MSL, LSLR, from
      rates of .1 (Omniglot) and .01, BNRS and BNWB are on in both.
    - With `per_step_norm = False` the inner loop adapts scale and shift of batch norm as MAML does.
    - As in MAML: the loss is a mean.
    """

    name = "maml++"
    reference = "Antoniou et al. 2019, arXiv:1810.09502"
    summary = "MAML with a loss after each step, learned rates, and a batch norm for each step."
    inference: ClassVar[Inference] = "transductive"
    equivariant_to = frozenset({"support-order"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = MAMLPlusPlusHyperparameters
    recipe = Recipe(steps=1000, meta_batch=2, lr=3e-3, schedule="cosine", validate_every=200)
    tasks_apart = True

    def build(self) -> None:
        steps = max(1, self.hp.inner_steps)
        if self.hp.per_step_norm:
            _multiply_norms(self.backbone, steps)
        super().build()
        if self.hp.learned_rates:
            start = torch.full((len(self.adapted_names()), steps), self.hp.inner_lr)
            self.rates = nn.Parameter(start)  # alpha of (1)

    @classmethod
    def inference_mode(cls, hp: Any) -> Inference:
        return "transductive" if hp.batch_norm == "batch" else "inductive"

    # The three schedules.

    def loss_weights(self, ctx: Context) -> dict[int, float]:
        """The v of (3) that aren't 0, by the number of steps after which queries are asked."""
        steps, until = self.inner_steps(ctx), self.hp.multi_step * ctx.total
        early = max(0.0, 1 - ctx.step / until) / max(1, steps) if until else 0.0
        weights = dict.fromkeys(range(1, steps), early) if early else {}
        return {**weights, steps: 1 - sum(weights.values())}

    def order_at(self, ctx: Context) -> Literal[1, 2]:
        """1 or 2: whether the outer gradient takes inner gradients as constants (DA)."""
        early = ctx.step < self.hp.first_order * ctx.total
        return 1 if early or not ctx.training else 2

    # Training.

    def training_loss(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """(2), divided by the number of tasks."""
        weights = self.loss_weights(ctx)
        states, moments = self.states(batch.support, ctx, list(weights))
        with torch.no_grad():
            for name, value in self.norm_buffers().items():
                if name in moments:
                    value.copy_(moments[name].mean(0))
        losses = []
        for (steps, weight), state in zip(weights.items(), states, strict=True):
            logits = self.predict_after(steps, state, batch.queries, ctx)
            losses.append(weight * query_cross_entropy(logits, batch.query_targets))
        return torch.stack(losses).sum()

    # The inner loop.

    def adapted_names(self) -> list[str]:
        """The whole network's but for batch norms that are not the same in each step."""
        apart = {id(p) for norm in _step_norms(self) for p in norm.parameters()}
        own = dict(self.named_parameters())
        return [name for name in super().adapted_names() if id(own[name]) not in apart]

    def inner_state(self, adapted: Tensors) -> Any:
        """Alpha of (1), (T,) for each tensor by its name; none where it isn't learned."""
        if not self.hp.learned_rates:
            return ()
        return dict(zip(self.adapted_names(), self.rates, strict=True))

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Any, t: int
    ) -> tuple[Tensors, Any]:
        """The step (1), the t-th from 0."""
        if not self.hp.learned_rates:
            return super().inner_update(params, grads, opt_state, t)
        at = min(t, self.rates.shape[1] - 1)
        moved = {name: phi - opt_state[name][at] * grads[name] for name, phi in params.items()}
        return moved, opt_state

    def support_mode(self, ctx: Context) -> Any:
        return "update" if self._gathers(ctx) else super().support_mode(ctx)

    def _gathers(self, ctx: Context) -> bool:
        """Whether the support sets move the running moments, each step its own."""
        return self.hp.per_step_norm and self.hp.batch_norm == "running" and ctx.training

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        return self.states(support, ctx, [self.inner_steps(ctx)])[0][0]

    def states(
        self, support: Support, ctx: Context, after: Sequence[int]
    ) -> tuple[list[PyTree], Tensors]:
        """The tasks' states after so many steps each, and the running moments where they moved.

        Args:
            after: numbers of steps, increasing.
        """
        names = self.adapted_names()
        own: Tensors = dict(self.named_parameters())

        def one_task(data: PyTree, labels: Tensor, mask: Tensor | None) -> PyTree:
            phi, moments, done = own, self.norm_buffers(), 0
            found = []
            for steps in after:
                phi, moments = self.steps_between(
                    phi, moments, (data, labels, mask), done, steps, ctx
                )
                with _at_step(self, steps - 1):
                    state = self.task_state({name: phi[name] for name in names}, moments, data)
                found.append(state)
                done = steps
            return found, moments if self._gathers(ctx) else {}

        found: tuple[list[PyTree], Tensors] = over_tasks(
            one_task, support.items.data, support.targets.values, support.items.mask
        )
        return found

    def steps_between(
        self, phi: Tensors, moments: Tensors, batch: PyTree, first: int, end: int, ctx: Context
    ) -> tuple[Tensors, Tensors]:
        """Steps `first` to `end` - 1 of one task, from all weights and moments before to after."""
        mode, names = self.support_mode(ctx), self.adapted_names()

        def loss(p: Tensors, b: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
            with _at_step(self, first + t):
                return self.inner_loss(p, b, batch, first + t, mode)

        def update(p: Tensors, grads: Tensors, state: Any, t: int) -> tuple[Tensors, Any]:
            return self.inner_update(p, grads, state, first + t)

        state, order = self.inner_state(phi), self.order_at(ctx)
        phi, moments, _ = unroll(
            loss, phi, moments, batch, state, update, names, end - first, order
        )
        return phi, moments

    # Predictions.

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return self.predict_after(self.inner_steps(ctx), state, queries, ctx)

    def predict_after(self, steps: int, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        """(B, Q, ways) of the states after so many steps, with the last step's batch norms."""
        with _at_step(self, steps - 1):
            return super().predict(state, queries, ctx)


def _multiply_norms(module: nn.Module, steps: int) -> None:
    """Replace the batch norms below a module by one for each step."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            setattr(module, name, StepNorm(child, steps))
        else:
            _multiply_norms(child, steps)


def _step_norms(module: nn.Module) -> list[StepNorm]:
    return [layer for layer in module.modules() if isinstance(layer, StepNorm)]


@contextmanager
def _at_step(module: nn.Module, step: int) -> Iterator[None]:
    """Have the batch norms of an inner step, from 0, in use for the duration."""
    norms = _step_norms(module)
    before = [norm.current for norm in norms]
    for norm in norms:
        norm.current = max(0, step)
    try:
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.current = old
