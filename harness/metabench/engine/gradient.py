"""Algorithms that adapt parameters by gradient descent on the support set."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metabench.api.algorithm import Algorithm, Inference
from metabench.api.backbone import BatchNormOption
from metabench.api.context import Context
from metabench.api.items import EpisodeBatch, Items, PyTree, Support
from metabench.api.recipe import Hyperparameters
from metabench.engine.apart import step_by_task
from metabench.engine.inner import Order, Tensors, linear_in_gradient, sgd, unroll
from metabench.engine.lift import over_tasks
from metabench.engine.modes import current_engine
from metabench.engine.norm import Mode, norm_mode
from metabench.errors import UsageError

Task = tuple[PyTree, Tensor, Tensor | None]
"""The support set of one task: items (S, ...), labels (S,), and mask (S,) or None."""


class GradientHyperparameters(Hyperparameters):
    """What every gradient-based algorithm lets one choose."""

    inner_lr: Annotated[float, Field(gt=0, description="inner-loop learning rate (alpha)")] = 0.4
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="inner steps in training")] = 5
    inner_steps_test: Annotated[
        int | None, Field(ge=0, le=1000, description="inner steps at test; none: as in training")
    ] = None
    batch_norm: Annotated[
        BatchNormOption, Field(description="whose moments batch norm uses; batch is transductive")
    ] = "support"


class GradientAlgorithm(Algorithm):
    """A network, backbone and linear head, of which some parameters are adapted by `unroll`.

    Subclasses choose `order`, and override `adapted_names`, `inner_update` and its state, or
    `inner_loss`, as their paper says.

    The state of B adapted tasks is `{"params": adapted ones, "buffers": batch-norm moments,
    "support": the support items}`, the latter two only where batch norm needs them.
    """

    family: ClassVar[str] = "optimisation"
    hyperparameters: ClassVar[type[Hyperparameters]] = GradientHyperparameters
    order: ClassVar[Order] = 2
    tasks_apart: ClassVar[bool] = False
    """Whether a `training_loss` of its own is a mean over tasks, see `training_step`."""

    def build(self) -> None:
        if self.problem.train_ways != self.problem.ways:
            raise UsageError(
                f"{self.name} has one output a class: it cannot train with "
                f"{self.problem.train_ways} ways and be tested with {self.problem.ways}",
                "leave the recipe's ways out",
            )
        self.head = nn.Linear(self.backbone.feature_dim, self.problem.ways)

    @classmethod
    def inference_mode(cls, hp: Any) -> Inference:
        return "transductive" if hp.batch_norm == "batch" else cls.inference

    def forward(self, data: PyTree) -> Tensor:
        """Logits (n, ways) of items (n, ...)."""
        logits: Tensor = self.head(self.backbone(data))
        return logits

    # What subclasses override.

    def adapted_names(self) -> list[str]:
        """Names of the parameters that the inner loop changes. Default: all of the network."""
        return [n for n, _ in self.named_parameters() if n.startswith(("backbone.", "head."))]

    def inner_steps(self, ctx: Context) -> int:
        at_test = self.hp.inner_steps_test
        if ctx.training or at_test is None:
            return int(self.hp.inner_steps)
        return int(at_test)

    def inner_loss(
        self, params: Tensors, buffers: Tensors, batch: PyTree, t: int, mode: Mode
    ) -> tuple[Tensor, Tensors]:
        """The inner objective on one task's support set. Default: mean cross-entropy."""
        data, labels, mask = batch
        logits, buffers = self.run(params, buffers, data, mode)
        if mask is None:
            return F.cross_entropy(logits, labels), buffers
        losses = F.cross_entropy(logits, labels, reduction="none")
        # A mini-batch may be all padding.
        return (losses * mask).sum() / mask.sum().clamp(min=1), buffers

    def inner_state(self, adapted: Tensors) -> Any:
        """The inner optimiser's state before the first step. Default: none."""
        return ()

    @linear_in_gradient
    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Any, t: int
    ) -> tuple[Tensors, Any]:
        """One inner step. Default: phi <- phi - alpha * gradient, shapes as the parameters'.

        Finn et al. 2017 (arXiv:1703.03400), section 2.2; (1) in the docstring of `MAML`.
        """
        return sgd(self.hp.inner_lr)(params, grads, opt_state, t)

    # Training.

    def training_step(self, batch: EpisodeBatch, ctx: Context) -> Tensor:
        """As every algorithm's, the outer gradient taken task by task where that is possible.

        A subclass with another `training_loss` has it taken at once, unless it says with
        `tasks_apart` that its loss of a batch is the mean of those of its tasks, by their queries.
        """
        usual = type(self).training_loss is Algorithm.training_loss
        if current_engine() == "vmap" or not (usual or self.tasks_apart):
            return super().training_step(batch, ctx)
        return step_by_task(self, batch, ctx)

    # The inner loop over a batch of tasks.

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        def one_task(data: PyTree, labels: Tensor, mask: Tensor | None) -> PyTree:
            return self.adapt_task((data, labels, mask), ctx)

        values, mask = support.targets.values, support.items.mask
        return over_tasks(one_task, support.items.data, values, mask)

    def adapt_task(self, task: Task, ctx: Context) -> PyTree:
        """The state of one task. Default: that after `descend` from the algorithm's parameters."""
        phi, moments, _ = self.descend(dict(self.named_parameters()), task, ctx)
        return self.task_state(phi, moments, task[0])

    def descend(self, params: Tensors, task: Task, ctx: Context) -> tuple[Tensors, Tensors, Any]:
        """The inner loop on one task.

        Args:
            params: all parameters to begin with, by name.
            task: items (S, ...), labels (S,), and mask (S,) or None.
            ctx: the call's context.

        Returns:
            the adapted parameters, batch norm's moments, and the inner optimiser's state.
        """
        names, mode = self.adapted_names(), self.support_mode(ctx)

        def loss(p: Tensors, b: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
            return self.inner_loss(p, b, batch, t, mode)

        phi, moments, opt_state = unroll(
            loss,
            params,
            self.norm_buffers(),
            task,
            self.inner_state({name: params[name] for name in names}),
            self.inner_update,
            names,
            self.inner_steps(ctx),
            self.order if ctx.training else 1,
        )
        return {name: phi[name] for name in names}, moments, opt_state

    def task_state(self, adapted: Tensors, moments: Tensors, data: PyTree) -> PyTree:
        """The state of one adapted task, whose support items are `data` (S, ...)."""
        if self.hp.batch_norm == "support":
            # Once more, under the adapted weights: these moments are what queries get.
            _, moments = self.run(adapted, moments, data, "record")
        return self.finished_state(adapted, moments, data)

    def finished_state(self, adapted: Tensors, moments: Tensors, data: PyTree) -> PyTree:
        """The same where `moments` are those under the adapted weights already."""
        state: dict[str, PyTree] = {"params": adapted}
        if self.hp.batch_norm == "support":
            state["buffers"] = moments
        elif self.hp.batch_norm == "support+1":
            state["support"] = data
        return state

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        option = self.hp.batch_norm
        if option == "running" and ctx.training:
            return self._predict_and_update(state, queries)

        def one_task(task: PyTree, data: PyTree) -> Tensor:
            params = task["params"]
            if option == "support+1":
                return self._beside_support(params, task["support"], data)
            buffers = task.get("buffers") or self.norm_buffers()
            mode: Mode = "fresh" if option == "batch" else "stored"
            return self.run(params, buffers, data, mode)[0]

        logits: Tensor = over_tasks(one_task, state, queries.data)
        return logits

    # How the network is run.

    def run(
        self, params: Tensors, buffers: Tensors, data: PyTree, mode: Mode
    ) -> tuple[Tensor, Tensors]:
        """Logits (n, ways) under these parameters, and the batch-norm moments after the call.

        Parameters that are not given are the algorithm's own.
        """
        tensors = {**params, **buffers}
        with norm_mode(self, mode):
            logits: Tensor = functional_call(self, tensors, (data,))
        return logits, {name: tensors[name] for name in buffers}

    def features(self, buffers: Tensors, data: PyTree, mode: Mode) -> tuple[Tensor, Tensors]:
        """As `run`, but what comes before the head: the backbone's features (n, D)."""
        prefix = "backbone."
        inside = {k.removeprefix(prefix): v for k, v in buffers.items() if k.startswith(prefix)}
        with norm_mode(self.backbone, mode):
            features: Tensor = functional_call(self.backbone, inside, (data,))
        return features, {**buffers, **{prefix + name: value for name, value in inside.items()}}

    def norm_buffers(self) -> Tensors:
        """The batch-norm moments of the network, by name."""
        return {
            name: value
            for name, value in self.named_buffers()
            if name.endswith((".running_mean", ".running_var"))
        }

    def support_mode(self, ctx: Context) -> Mode:
        """How batch norm treats the support set in the inner loop."""
        return "stored" if self.hp.batch_norm == "running" and not ctx.training else "fresh"

    def _beside_support(self, params: Tensors, support: Tensor, queries: Tensor) -> Tensor:
        """(Q, ways): each query in a batch with the support set and nothing else."""

        def one_query(query: Tensor) -> Tensor:
            logits, _ = self.run(params, {}, torch.cat([support, query[None]]), "fresh")
            return logits[-1]

        logits: Tensor = vmap(one_query, randomness="different")(queries)
        return logits

    def _predict_and_update(self, state: PyTree, queries: Items) -> Tensor:
        """Predict by batch moments, and move the running ones by the mean over the tasks."""
        before = self.norm_buffers()

        def one_task(task: PyTree, data: PyTree) -> PyTree:
            return self.run(task["params"], before, data, "update")

        logits, after = over_tasks(one_task, state, queries.data)
        with torch.no_grad():
            for name, value in before.items():
                value.copy_(after[name].mean(0))
        result: Tensor = logits
        return result
