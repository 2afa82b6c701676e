"""Task mapping: the meta-learner as supervised learning, from a support set to parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from metabench import (
    Collect,
    Context,
    EmbeddingAlgorithm,
    EpisodeBatch,
    Field,
    Hyperparameters,
    Items,
    Learn,
    Measure,
    Phase,
    PyTree,
    Recipe,
    Support,
)
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.pretrained import PretrainedHyperparameters, pretrained_before
from metabench_plugins.algorithms.task_mapping.set_network import (
    SetNetwork,
    class_by_class,
)
from metabench_plugins.algorithms.task_mapping.solutions import (
    head_optimum,
    linear,
    network_solution,
    network_values,
    right_share,
)

AT_ONCE = 16
"""Tasks that are solved together."""
TINY = 1e-12
"""Added to what is divided by: of features that are all alike, every phi* is zero."""
Model = dict[str, Tensor]
"""phi of B tasks: `head` (B, N, P) and, of a network, `hidden` (B, h, D + 1)."""


class TaskMappingHyperparameters(PretrainedHyperparameters):
    target: Annotated[
        Literal["head", "network"],
        Field(
            description="phi: a linear head on the backbone's features, or a network on them with "
            "a hidden layer"
        ),
    ] = "head"
    loss: Annotated[
        Literal["squared-error", "cross-entropy", "both"],
        Field(
            description="of f: the squared error of parameters, relative to their size, the "
            "cross-entropy of the predicted model, or the sum of both"
        ),
    ] = "both"
    tasks: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="tasks collected; no more than f's training draws"),
    ] = 1000
    pool: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="items of each class that are kept of a task, beyond those of a support "
            "set, which is drawn from them anew at each step",
        ),
    ] = 15
    decay: Annotated[float, Field(gt=0, description="weight decay of phi, biases included")] = 0.1
    width: Annotated[int, Field(ge=1, le=65_536, description="of f's layers")] = 128
    layers: Annotated[
        int, Field(ge=0, le=100, description="attention layers of f; 0: linear in class means")
    ] = 1
    hidden: Annotated[
        int, Field(ge=1, le=65_536, description="width of the network's hidden layer (network)")
    ] = 32
    network_steps: Annotated[
        int, Field(ge=1, le=100_000, description="gradient steps on all items (network)")
    ] = 50
    network_lr: Annotated[
        float, Field(gt=0, description="learning rate of these steps (network)")
    ] = 0.1
    measured_tasks: Annotated[
        int, Field(ge=0, le=100_000, description="meta-validation tasks that f is measured on")
    ] = 96


class TaskMapping(EmbeddingAlgorithm):
    """A mapping f_theta from a support set D to parameters phi, learnt from solved tasks.

    Nearest relatives: Yu-Xiong Wang, Martial Hebert, "Learning to Learn: Model Regression Networks
    for Easy Small Sample Learning", ECCV 2016, https://doi.org/10.1007/978-3-319-46466-4_37, which
    regresses classifiers of many samples on those of few, one class at a time; James Requeima,
    Jonathan Gordon, John Bronskill, Sebastian Nowozin, Richard E. Turner, "Fast and Flexible
    Multi-Task Classification Using Conditional Neural Adaptive Processes", 2019,
    https://arxiv.org/abs/1906.07697, whose classifier's weights are a network's of class means.

    1. The backbone is trained to classify all training classes (the phase that `baseline` has).
    2. For many tasks of training classes, phi* is found on *all* items of the classes: of a head,
           phi* = argmin mean cross-entropy + decay / 2 |phi|^2                               (1)
       which is unique; of a network, what a fixed number of gradient steps on the same makes of
       one initialisation, common to all tasks.
    3. f is trained by back-propagation, as any regression. It predicts the deviation from the mean
       over the tasks, m, which is zero for whatever is of a single class, as labels are arbitrary:
           squared error: |f(D) - phi*|^2 / mean |phi* - m|^2, of each of a network's layers  (2)
           cross-entropy: of the model f(D) on items of the classes that are not in D         (3)
    4. At test phi = f(D), without a gradient step.

    On meta-validation tasks, where phi* can be found too, the record says how far f(D) is from it,
    |f(D) - phi*|^2 / |phi* - m|^2 (`mapped_error`; 1 is that of m), beside fine-tuning on D: the
    same model fitted to D alone, by (1) or as many steps from the same initialisation, under the
    same decay (`finetuned_error`). Both are ratios of a task, then averaged, and unlike (2) of all
    parameters together, as they are: a network's is chiefly its hidden layer's, which has most of
    them. The record also says what share of the items that are not in D each of them and phi* gets
    right (`..._accuracy`; phi* has seen them). What solving the tasks takes is in the row's
    training time, steps and items.

    Differs: from Wang and Hebert, D goes in, not a classifier fitted to it, and f sees all classes
    at once; from CNAPs, the target is phi*, not the queries alone, and the backbone stays as it is.
    Features go into f centred and scaled as those of the collected tasks. A network is two layers
    on these features, not one from the pixels on; as it isn't convex, its phi* is where so many
    steps end, and no optimum.
    """

    name = "task-mapping"
    family = "task-mapping"
    reference = "Wang and Hebert 2016, doi:10.1007/978-3-319-46466-4_37"
    summary = "A network maps a support set to a classifier, learnt from solved training tasks."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[Hyperparameters]] = TaskMappingHyperparameters
    recipe = Recipe(
        steps=1000, batch_size=64, optimizer="adamw", weight_decay=1.0, validate_every=250
    )

    hp: TaskMappingHyperparameters
    centre: Tensor
    spread: Tensor
    start: Tensor
    hidden_mean: Tensor

    def build(self) -> None:
        size, hidden = self.backbone.feature_dim, 0
        if self.hp.target == "network":
            hidden = self.hp.hidden
            # The one initialisation of all tasks: He's, biases zero.
            weights = torch.randn(hidden, size) * (2 / size) ** 0.5
            self.register_buffer("start", torch.cat([weights, torch.zeros(hidden, 1)], 1))
            self.register_buffer("hidden_mean", self.start.clone())
            self.register_buffer("hidden_unit", torch.ones(()))
        self.register_buffer("head_unit", torch.ones(()))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        of_class, of_task = (hidden or size) + 1, hidden * (size + 1)
        self.mapping = SetNetwork(size, self.hp.width, self.hp.layers, of_class, of_task)

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """Supervised training; solving tasks; learning f from them; measuring it."""
        before = pretrained_before(self.backbone, self.problem, recipe, self.hp)
        tasks = min(self.hp.tasks, recipe.steps * recipe.batch_size)
        changes = {"steps": -(-tasks // AT_ONCE), "meta_batch": AT_ONCE}
        measured = -(-min(self.hp.measured_tasks, tasks) // AT_ONCE)
        shots = recipe.shots or self.problem.shots
        return [
            *before,
            Collect(self.solve, recipe.model_copy(update=changes), self.scale, whole_classes=True),
            Learn(recipe, lambda examples, ctx: self.mapping_loss(examples, shots, ctx)),
            Measure(self.compare, Recipe(steps=measured, meta_batch=AT_ONCE), whole_classes=True),
        ]

    # Solved tasks.

    def solve(self, batch: EpisodeBatch, ctx: Context) -> Model:
        """phi* of each task, and some items of each of its classes, at random."""
        features, member = everything(batch)
        shots = batch.support.targets.values.shape[1] // batch.support.ways
        most = min(shots + self.hp.pool, features.shape[1])
        order = ctx.rng.uniform(features.shape[1]).unsqueeze(1)  # (B, 1, n)
        order = order.masked_fill(~member.mT, -1)  # (B, N, n): those of other classes last
        chosen = order.topk(most)
        task = torch.arange(len(features), device=features.device).view(-1, 1, 1)
        pool = {"pool": features[task, chosen.indices], "real": chosen.values >= 0}
        return {**pool, **self.solution(features, member)}

    def solution(self, features: Tensor, member: Tensor) -> Model:
        """phi* for items (B, n, D) of all classes, in float32 or better."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        steps, lr, decay = self.hp.network_steps, self.hp.network_lr, self.hp.decay
        with torch.autocast(features.device.type, enabled=False):
            if self.hp.target == "head":
                return {"head": head_optimum(features, member, decay)}  # (1)
            head, hidden = network_solution(self.start, features, member, steps, lr, decay)
        return {"head": head, "hidden": hidden}

    def scale(self, examples: Mapping[str, Tensor]) -> None:
        """Note where features and parameters lie, and how far they spread."""
        features = examples["pool"][examples["real"]]
        self.centre.copy_(features.mean(0))
        deviation = (features - self.centre).square().mean(0).sqrt()
        # A feature that hardly ever changes must not be blown up.
        self.spread.copy_(deviation.clamp(min=1e-6).clamp(min=0.1 * float(deviation.mean())))
        if self.hp.target == "network":
            self.hidden_mean.copy_(examples["hidden"].mean(0))
        for name, off in self.deviations(examples).items():
            self.get_buffer(f"{name}_unit").copy_(off.square().mean().sqrt().clamp(min=TINY))

    def deviations(self, model: Mapping[str, Tensor]) -> Model:
        """Of the parameters of B tasks from m."""
        found = {"head": model["head"]}
        if self.hp.target == "network":
            found["hidden"] = model["hidden"] - self.hidden_mean
        return found

    # f_theta.

    def mapped(self, features: Tensor, member: Tensor) -> Model:
        """f(D) for support sets (B, S, D) with members (B, S, N)."""
        head, hidden = self.mapping((features - self.centre) / self.spread, member)
        found = {"head": head * self.get_buffer("head_unit")}
        if hidden is not None:
            deviation = hidden.view(-1, *self.start.shape) * self.get_buffer("hidden_unit")
            found["hidden"] = self.hidden_mean + deviation
        return found

    def mapping_loss(self, examples: Mapping[str, Tensor], shots: int, ctx: Context) -> Tensor:
        """(2), (3) or their sum, of a support set drawn from each task's pool."""
        pool, real = examples["pool"], examples["real"]  # (B, N, M, D), (B, N, M)
        order = ctx.rng.uniform(*real.shape)[0].masked_fill(~real, -1)
        chosen = order.topk(shots).indices  # (B, N, K)
        tasks, ways = (torch.arange(size, device=real.device) for size in real.shape[:2])
        known = pool[tasks.view(-1, 1, 1), ways.view(-1, 1), chosen].flatten(1, 2)
        found = self.mapped(known, class_by_class(len(ways), shots, real.device))
        loss = pool.new_zeros(())
        if self.hp.loss != "cross-entropy":
            for name, value in found.items():
                off = (value - examples[name]) / self.get_buffer(f"{name}_unit")
                loss = loss + off.square().mean()  # (2)
        if self.hp.loss != "squared-error":
            others = real.scatter(2, chosen, False)
            logits = self.values(found, pool.flatten(1, 2)).view(*real.shape, -1)
            likely = logits.log_softmax(-1).diagonal(dim1=1, dim2=3).mT  # (B, N, M)
            loss = loss - (likely * others).sum() / others.sum().clamp(min=1)  # (3)
        return loss

    def values(self, model: Model, features: Tensor) -> Tensor:
        """(B, n, N) logits of features (B, n, D)."""
        if self.hp.target == "head":
            return linear(model["head"], features)
        return network_values(model["head"], model["hidden"], features)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        return self.mapped(support.items.data, class_membership(support))

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        return self.values(state, queries.data)

    # What the record says of it.

    @torch.no_grad()
    def compare(self, batch: EpisodeBatch, ctx: Context) -> Mapping[str, Tensor]:
        """f(D) and fine-tuning on D against phi*, on tasks of which all is known."""
        known, member = batch.support.items.data, class_membership(batch.support)
        best = self.solution(*everything(batch))
        models = {"mapped": self.mapped(known, member), "finetuned": self.solution(known, member)}
        asked = class_membership(Support(batch.queries, batch.query_targets, batch.support.ways))
        size = sum(off.square().sum((1, 2)) for off in self.deviations(best).values()) + TINY
        found = {}
        for name, model in {**models, "optimum": best}.items():
            found[f"{name}_accuracy"] = right_share(self.values(model, batch.queries.data), asked)
        for name, model in models.items():
            off = sum((model[part] - best[part]).square().sum((1, 2)) for part in best)
            found[f"{name}_error"] = torch.as_tensor(off / size)
        return found


def everything(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """All items (B, n, D) of tasks, support and queries, and who is of which class (B, n, N)."""
    queries = Support(batch.queries, batch.query_targets, batch.support.ways)
    features = torch.cat([batch.support.items.data, batch.queries.data], dim=1)
    return features, torch.cat([class_membership(batch.support), class_membership(queries)], dim=1)
