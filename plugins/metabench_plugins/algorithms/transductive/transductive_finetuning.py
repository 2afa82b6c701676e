"""Transductive fine-tuning: the network adapts until it is also sure of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench import (
    Batches,
    BatchNormOption,
    Context,
    Field,
    GradientAlgorithm,
    GradientHyperparameters,
    Inference,
    Items,
    Phase,
    PyTree,
    Recipe,
    SupervisedClassifier,
    Support,
    leading_size,
    over_tasks,
    supervised_loss,
    tree_map,
    unroll,
)
from metabench_plugins.algorithms.adam import adam, no_moments
from metabench_plugins.algorithms.classes import class_means, class_membership
from metabench_plugins.algorithms.pretrained import pretrained
from metabench_plugins.algorithms.transductive.tim import entropy

Tensors = dict[str, Tensor]
WEIGHT, BIAS = "weight", "bias"
"""Of the new classifier, beside the names of the network's parameters."""


class TransductiveFinetuningHyperparameters(GradientHyperparameters):
    inner_lr: Annotated[float, Field(gt=0, description="Adam's learning rate")] = 1e-4
    inner_steps: Annotated[int, Field(ge=0, le=1000, description="steps of Adam on a task")] = 10
    batch_norm: Annotated[
        BatchNormOption,
        Field(description="whose moments batch norm uses; batch: support set and queries apart"),
    ] = "running"
    adapted: Annotated[
        Literal["network", "head"],
        Field(description="what is fine-tuned: all of it, or the new classifier alone"),
    ] = "network"
    entropy_weight: Annotated[
        float, Field(ge=0, description="of the queries' entropy; 0: the support set alone")
    ] = 1.0
    representation: Annotated[
        Literal["logits", "features"],
        Field(description="what the new classifier reads: logits of the old one, or features"),
    ] = "features"


class TransductiveFinetuning(GradientAlgorithm):
    """Transductive fine-tuning.

    Guneet S. Dhillon, Pratik Chaudhari, Avinash Ravichandran, Stefano Soatto, "A Baseline for
    Few-Shot Image Classification", ICLR 2020, https://arxiv.org/abs/1909.02729, section 3

    A network is trained to classify the training classes. On top of its features, or of its logits
    after a ReLU, come scaling to length 1 and a new linear classifier, of which the support set
    says the weights:
        z(x) = features(x) / |features(x)|, or relu(logits(x)) / |relu(logits(x))|     (1)
        w_n = mean of z over class n's support items, to length 1;  b_n = 0            (2)
    Then the network and the new classifier minimise together, by Adam,
        CE(support) + 1 / |Q| sum over the queries of H(p(. | x_q))                    (3)
    The entropy has the weight 1, `entropy_weight`, as in the authors' code for each of its four
    data sets (mini-ImageNet, tiered-ImageNet, CIFAR-FS, FC100).

    The queries are needed for that, so it is `predict` that fine-tunes.

    Differs:
    - The authors' new classifier reads the old one's logits, behind a ReLU and scaled to length 1,
      on all data sets: `representation = "logits"`. Those of a small network that was trained for a
      short time are negative nearly everywhere, and of the ReLU too little comes through, so the
      default is the features, as the backbone gives them.
    - Each step descends (3); the authors' code takes a step on its first term, then one on its
      second, and does so 25 times at a learning rate of 5e-5; the default here costs a fifth of
      that. They augment support items and queries.
    - In their fine-tuning batch norm uses the moments of the support set, then of the queries, and
      moves its running averages, with which the queries are predicted in the end. Here it keeps
      those of pre-training; `batch_norm = "batch"`, each set's own, is nearest to theirs.
    """

    name = "transductive-finetuning"
    family = "transductive"
    reference = "Dhillon et al. 2020, arXiv:1909.02729"
    summary = "Fine-tunes on the support set's labels and the entropy of the queries."
    inference = "transductive"
    equivariant_to = frozenset({"support-order", "class-labels"})
    hyperparameters: ClassVar[type[GradientHyperparameters]] = TransductiveFinetuningHyperparameters
    recipe = Recipe(steps=4000, batch_size=64)
    order = 1

    hp: TransductiveFinetuningHyperparameters

    @classmethod
    def inference_mode(cls, hp: Any) -> Inference:
        """Without the queries' entropy, and but for batch norm, a query knows of no other."""
        looks = hp.entropy_weight > 0 or hp.batch_norm == "batch"
        return "transductive" if looks else "inductive"

    def build(self) -> None:
        if self.hp.representation == "logits":
            self.classifier = nn.Linear(self.backbone.feature_dim, self.problem.train_classes)

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The pre-training that all share; its classifier is kept where it is read."""
        if self.hp.representation == "features":
            return pretrained(self.backbone, self.problem, recipe)
        module = SupervisedClassifier(self.backbone, self.problem.train_classes)
        module.classifier = self.classifier
        return [Batches(recipe, module, supervised_loss, shared=True)]

    def forward(self, data: PyTree) -> Tensor:
        """Embeddings z (n, D) of items (n, ...)."""
        z: Tensor = self.backbone(data)
        if self.hp.representation == "logits":
            z = self.classifier(z).relu()
        return F.normalize(z, dim=-1)  # (1)

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        """The support-based initialisation; what needs the queries is left to `predict`."""
        buffers = self.norm_buffers()

        def one_task(data: PyTree) -> Tensor:
            running = self.hp.batch_norm == "running"
            return self.run({}, buffers, data, "stored" if running else "fresh")[0]

        z = over_tasks(one_task, support.items.data)  # (B, S, D)
        member = class_membership(support)
        weight = F.normalize(class_means(z, member), dim=-1)  # (2), (B, N, D)
        return {"items": support.items.data, "member": member, "weight": weight}

    def predict(self, state: PyTree, queries: Items, ctx: Context) -> Tensor:
        own: Tensors = dict(self.named_parameters())
        in_head, steps = self.hp.adapted == "head", self.inner_steps(ctx)
        update = adam(self.hp.inner_lr)

        def one_task(task: PyTree, asked: PyTree) -> Tensor:
            weight = task["weight"]
            head = {WEIGHT: weight, BIAS: torch.zeros_like(weight[:, 0])}
            start = head if in_head else own | head
            fixed = self.embedded({}, task["items"], asked) if in_head else None

            def loss(p: Tensors, b: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
                member, items, asked = batch
                known, z = fixed or self.embedded(p, items, asked)
                return self.objective(p, known, member, z), b

            batch = (task["member"], task["items"], asked)
            phi, _, _ = unroll(loss, start, {}, batch, no_moments(start), update, start, steps, 1)
            _, z = fixed or self.embedded(phi, task["items"], asked)
            return F.linear(z, phi[WEIGHT], phi[BIAS])

        logits: Tensor = over_tasks(one_task, state, queries.data)
        return logits

    def objective(self, head: Tensors, known: Tensor, member: Tensor, asked: Tensor) -> Tensor:
        """(3) of one task, of embeddings (S, D) and (Q, D) and membership (S, N)."""
        logits = F.linear(known, head[WEIGHT], head[BIAS])
        wanted = member.to(logits.dtype)
        cross = -(logits.log_softmax(-1) * wanted).sum() / wanted.sum()
        p = F.linear(asked, head[WEIGHT], head[BIAS]).softmax(-1)
        return cross + self.hp.entropy_weight * entropy(p, 1).mean()

    def embedded(self, params: Tensors, support: PyTree, queries: PyTree) -> tuple[Tensor, Tensor]:
        """Embeddings z (S, D) and (Q, D) of one task under these parameters."""
        network = {name: value for name, value in params.items() if name not in {WEIGHT, BIAS}}
        option, moments = self.hp.batch_norm, self.norm_buffers()
        if option == "running":
            joint = tree_map(lambda s, q: torch.cat([s, q]), support, queries)
            size = leading_size(support)
            z = self.run(network, moments, joint, "stored")[0]
            return z[:size], z[size:]
        if option == "support":
            known, moments = self.run(network, moments, support, "record")
            return known, self.run(network, moments, queries, "stored")[0]
        known = self.run(network, moments, support, "fresh")[0]
        if option == "support+1":
            return known, self._beside_support(network, support, queries)
        return known, self.run(network, moments, queries, "fresh")[0]
