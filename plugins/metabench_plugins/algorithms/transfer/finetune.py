"""Fine-tuning: pre-trained weights, or a part of them, descend on the support set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    BatchNormOption,
    Choose,
    Context,
    Field,
    GradientAlgorithm,
    Hyperparameters,
    Phase,
    PyTree,
    Recipe,
    Support,
    UsageError,
    over_tasks,
    unroll,
)
from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.pretrained import pretrained
from metabench_plugins.algorithms.transfer.low_rank import (
    DOWN,
    UP,
    dense_weights,
    factor_sizes,
    merged,
)
from metabench_plugins.algorithms.transfer.noise import dropout_mask, moved
from metabench_plugins.algorithms.transfer.optimisers import (
    Optimizer,
    Schedule,
    adamw_step,
    memory_of,
    momentum_step,
    scheduled,
)
from metabench_plugins.algorithms.transfer.policies import Policy, moving
from metabench_plugins.algorithms.transfer.stopping import BEST, best, held_out, nothing_tried

Tensors = dict[str, Tensor]
HEAD = ("head.weight", "head.bias")
KEPT = "kept"
"""The buffer by which features are multiplied: ones, or a dropout mask."""
SHOTS_TO_STOP_BY = 5
"""From so many shots up an item of each class can be spared."""


class FineTuneHyperparameters(Hyperparameters):
    policy: Annotated[
        Policy,
        Field(
            description="what moves beside the head: all, nothing, the last block, the biases of "
            "the backbone, or low-rank adapters of its weights"
        ),
    ] = "full"
    steps: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000)], ...],
        Field(
            min_length=1,
            description="steps to choose from on meta-validation, the first where "
            "there is none; with early stopping the most of them is the limit",
        ),
    ] = (10, 5, 25)
    early_stopping: Annotated[
        bool, Field(description="from 5 shots up: keep the step that is best on held-out items")
    ] = True
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="share of each class held out, one item or more")
    ] = 0.2
    optimizer: Annotated[Optimizer, Field(description="sgd with momentum, or adamw")] = "sgd"
    lr: Annotated[float, Field(gt=0, description="learning rate of the first step")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd")] = 0.9
    weight_decay: Annotated[
        float, Field(ge=0, description="of all that moves; decoupled with adamw")
    ] = 0.001
    schedule: Annotated[Schedule, Field(description="how the learning rate falls")] = "constant"
    dropout: Annotated[float, Field(ge=0, lt=1, description="rate of dropout of features")] = 0.0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of a target that is spread over all classes")
    ] = 0.0
    shift: Annotated[
        int, Field(ge=0, le=64, description="augmentation: pixels that an image moves, at most")
    ] = 0
    flip: Annotated[bool, Field(description="augmentation: mirror images left to right")] = False
    rank: Annotated[int, Field(ge=1, le=1024, description="of lora's adapters (r)")] = 4
    alpha: Annotated[
        float, Field(gt=0, description="lora's adapters are scaled by alpha / rank")
    ] = 4.0
    batch_norm: Annotated[
        BatchNormOption, Field(description="whose moments batch norm uses; batch is transductive")
    ] = "running"


class FineTune(GradientAlgorithm):
    """Fine-tuning of pre-trained weights on the support set, by one of five policies.

    The backbone is trained to classify all training classes, without episodes, or brings
    weights of its own (its `weights`, and a recipe of 0 steps). On
    each task a new linear head, and with it what the policy names, descends the cross-entropy of
    the support set. No paper is followed as a whole; it is the practice of
        - `full`, `head`: Chen et al., "A Closer Look at Few-shot Classification", 2019,
          https://arxiv.org/abs/1904.04232, and Dhillon et al., "A Baseline for Few-Shot Image
          Classification", 2020, https://arxiv.org/abs/1909.02729 (section 3.1: the network is
          fine-tuned as a whole);
        - `last-block`: the last block of the backbone, see `last_block`;
        - `bias`: all biases of the backbone, those of batch norm among them; Ben Zaken et al.,
          "BitFit", 2022, https://arxiv.org/abs/2106.10199;
        - `lora`: for each weight W of a convolution or linear layer, as a matrix (out, in),
              W + (alpha / r) B A, with A (r, in) drawn at random, and B (out, r) from zero   (1)
          Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685, section 4.1.

    On the support set {(x, y)}, with features z = backbone(x):
        L = mean of the cross-entropy of softmax(W (z * m) + b) and (1 - s) y + s / N       (2)
    with dropout masks m and label smoothing s. Each step takes the whole support set; images are
    moved and mirrored anew in each (`shift`, `flip`). How many steps:
        - from 5 shots up, with early stopping, a part of each class is held out of (2), and the
          parameters of the step with the least loss (without m and s) on it are kept          (3)
        - otherwise the number is one of `steps`, chosen on meta-validation.

    Differs: the head starts at zero, so that no class is favoured and the first step of it goes
    towards the class means; the papers draw it (Chen) or make it of class means (Dhillon). A is
    normal with variance 1 / in; the authors' code of LoRA draws it uniformly, and their paper
    adapts attention layers only. Dropout's masks are independent in pairs, not all together (see
    `dropout_mask`). What is held out is not trained on afterwards. In batch norm's modes other
    than `running`, held-out items are normalised together with the others.
    """

    name = "finetune"
    family = "transfer"
    reference = "Chen et al. 2019, arXiv:1904.04232; Hu et al. 2021, arXiv:2106.09685"
    summary = "Pre-trained weights, or a part of them, descend on the support set."
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters = FineTuneHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)
    order = 1

    hp: FineTuneHyperparameters
    kept: Tensor

    def build(self) -> None:
        super().build()
        if (self.hp.shift or self.hp.flip) and self.problem.item.kind != "image":
            raise UsageError(
                f"finetune moves and mirrors images, not items of kind {self.problem.item.kind!r}",
                "leave shift and flip out",
            )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer(KEPT, torch.ones(()), persistent=False)
        self.stops_early = self.hp.early_stopping and self.problem.shots >= SHOTS_TO_STOP_BY
        self.steps = max(self.hp.steps) if self.stops_early else self.hp.steps[0]

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """Shared pre-training; then the number of steps."""
        phases = pretrained(self.backbone, self.problem, recipe)
        if not self.stops_early and len(self.hp.steps) > 1:
            candidates, episodes = len(self.hp.steps), recipe.validation_episodes
            phases.append(Choose(self.choose_steps, candidates, episodes, name="steps"))
        return phases

    def choose_steps(self, number: int) -> None:
        """Take as many steps as that candidate says."""
        self.steps = self.hp.steps[number]

    # How many steps there are is a part of the checkpoint, and known without asking a device.

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    @classmethod
    def equivariances(cls, hp: Any) -> frozenset[Literal["support-order", "class-labels"]]:
        # AdamW divides a gradient by its own size, be it only what rounding left of zero.
        if hp.optimizer == "adamw":
            return frozenset()
        # What is held out, dropped and moved hangs on the place in the support set.
        placed = hp.early_stopping or hp.dropout or hp.shift or hp.flip
        return cls.equivariant_to - {"support-order"} if placed else cls.equivariant_to

    # The network.

    def forward(self, data: PyTree) -> Tensor:
        logits: Tensor = self.head(self.backbone(data) * self.kept)
        return logits

    def run(
        self, params: Tensors, buffers: Tensors, data: PyTree, mode: Any
    ) -> tuple[Tensor, Tensors]:
        """As every gradient algorithm's, with the adapters among the parameters merged (1)."""
        whole = {name: value for name, value in params.items() if not name.endswith((DOWN, UP))}
        for name in self.adapters():
            if name + UP in params:
                weight = params[name] if name in params else self.get_parameter(name)
                down, up = params[name + DOWN], params[name + UP]
                whole[name] = merged(weight, down, up, self.hp.alpha / self.hp.rank)
        return super().run(whole, buffers, data, mode)

    def adapters(self) -> Tensors:
        """The weights that have low-rank adapters, by name."""
        return dense_weights(self.backbone, "backbone.") if self.hp.policy == "lora" else {}

    def adapted_names(self) -> list[str]:
        """Names of the network's own parameters that move; adapters come to them."""
        return [*(f"backbone.{name}" for name in moving(self.backbone, self.hp.policy)), *HEAD]

    def start(self, ctx: Context) -> Tensors:
        """The adapters to begin with, A drawn and B zero: (B, r, in) and (B, out, r)."""
        found: Tensors = {}
        for name, weight in self.adapters().items():
            outputs, rank, inputs = factor_sizes(weight, self.hp.rank)
            down = ctx.rng.normal(rank, inputs, dtype=weight.dtype) / inputs**0.5
            found |= {name + DOWN: down, name + UP: down.new_zeros(len(down), outputs, rank)}
        return found

    # Adaptation.

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        own: Tensors = dict(self.named_parameters())
        adapters = self.start(ctx)
        names = [*self.adapted_names(), *adapters]
        known = self.known(support, ctx)

        def one_task(data: PyTree, known: Tensors, adapters: Tensors) -> PyTree:
            params = {**own, **adapters}
            return self.tune(params, names, data, known, ctx)

        return over_tasks(one_task, support.items.data, known, adapters)

    def known(self, support: Support, ctx: Context) -> dict[str, Tensor]:
        """What is known of the items beside themselves, and what is drawn for them.

        Returns:
            `labels` (B, S); `weights` (B, S), 1 where an item is learnt from; with early stopping
            `held` (B, S), whether it is held out; with dropout `of_items` (B, T, S) and
            `of_features` (B, T, D), with augmentation `moves` (B, T, S, 3), uniform draws for
            each of the T steps.
        """
        member = class_membership(support)  # (B, S, N)
        learnt, size = member.any(-1), member.shape[1]
        dtype = self.head.weight.dtype
        known = {"labels": support.targets.values}
        if self.stops_early:
            known["held"] = held_out(member, ctx.rng.uniform(size), self.hp.held_out)
            learnt = learnt & ~known["held"]
        known["weights"] = learnt.to(dtype)
        if self.hp.dropout:
            known["of_items"] = ctx.rng.uniform(self.steps, size, dtype=dtype)
            dim = self.backbone.feature_dim
            known["of_features"] = ctx.rng.uniform(self.steps, dim, dtype=dtype)
        if self.hp.shift or self.hp.flip:
            known["moves"] = ctx.rng.uniform(self.steps, size, 3)
        return known

    def tune(
        self, params: Tensors, names: list[str], data: PyTree, known: Tensors, ctx: Context
    ) -> PyTree:
        """The state of one task with items `data` (S, ...), and what is `known` of them."""
        mode, moments = self.support_mode(ctx), self.norm_buffers()
        inputs = data
        if self.frozen:
            once = "record" if self.hp.batch_norm == "support" else mode
            inputs, moments = self.features(moments, data, once)

        def loss(here: Tensors, state: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
            return self.inner_loss(here, state, batch, t, mode)

        adapted = {name: params[name] for name in names}
        state = moments
        if "held" in known:
            state = {**moments, **nothing_tried(adapted)}
        memory, batch = memory_of(self.hp.optimizer, adapted), (inputs, known)
        after, state, _ = unroll(
            loss, params, state, batch, memory, self.inner_update, names, self.steps, self.order
        )
        if "held" in known:
            _, state = loss(after, state, batch, self.steps - 1)  # the last ones, not seen so far
            after = {name: state[BEST + name] for name in names}
        adapted, moments = {n: after[n] for n in names}, {n: state[n] for n in moments}
        finish = self.finished_state if self.frozen else self.task_state
        return finish(adapted, moments, data)

    @property
    def frozen(self) -> bool:
        """Whether the backbone sees the support set once and for all."""
        return self.hp.policy == "head" and not (self.hp.shift or self.hp.flip)

    def inner_loss(
        self, params: Tensors, buffers: Tensors, batch: PyTree, t: int, mode: Any
    ) -> tuple[Tensor, Tensors]:
        """(2), and the best parameters so far by (3) among the buffers."""
        inputs, known = batch
        moments = {n: value for n, value in buffers.items() if not n.startswith(BEST)}
        shown, kept = self.disturbed(inputs, known, t)
        if self.frozen:
            logits, after = F.linear(shown * kept, *(params[name] for name in HEAD)), moments
        else:
            logits, after = self.run(params, {**moments, KEPT: kept}, shown, mode)
            after.pop(KEPT)
        if "held" in known:
            plain = F.cross_entropy(logits.detach(), known["labels"], reduction="none")
            after = {**after, **best(buffers, params, plain, known["held"])}
        smoothing, weights = self.hp.label_smoothing, known["weights"]
        losses = F.cross_entropy(
            logits, known["labels"], reduction="none", label_smoothing=smoothing
        )
        return (losses * weights).sum() / weights.sum().clamp(min=1), after

    def disturbed(self, inputs: Tensor, known: Tensors, t: int) -> tuple[Tensor, Tensor]:
        """The items as step t sees them, and what their features are multiplied by."""
        kept = self.kept
        if "of_items" in known:
            kept = dropout_mask(known["of_items"][t], known["of_features"][t], self.hp.dropout)
            if "held" in known:
                kept = torch.where(known["held"].unsqueeze(1), 1.0, kept)
        if "moves" in known:
            other = moved(inputs, known["moves"][t], self.hp.shift, self.hp.flip)
            if "held" in known:
                other = torch.where(known["held"].view(-1, 1, 1, 1), inputs, other)
            inputs = other
        return inputs, kept

    def inner_update(
        self, params: Tensors, grads: Tensors, opt_state: Any, t: int
    ) -> tuple[Tensors, Any]:
        """One step of the optimiser at its scheduled learning rate."""
        lr = scheduled(self.hp.lr, self.hp.schedule, t, self.steps)
        if self.hp.optimizer == "adamw":
            step = adamw_step(lr, self.hp.weight_decay)
        else:
            step = momentum_step(lr, self.hp.momentum, self.hp.weight_decay)
        return step(params, grads, opt_state, t)
