"""ANIL: MAML whose inner loop adapts the head only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metabench import (
    Context,
    GradientAlgorithm,
    GradientHyperparameters,
    PyTree,
    Recipe,
    Support,
    Targets,
    over_tasks,
    query_cross_entropy,
    unroll,
)

Tensors = dict[str, Tensor]


class ANIL(GradientAlgorithm):
    """Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?".

    ICLR 2020, https://arxiv.org/abs/1909.09157, section 4.1 ("almost no inner loop"). What MAML
    learns is mostly features that need no adapting, so the inner loop changes the head alone; the
    outer loop trains head and backbone together, through the inner steps.

    With features z = backbone(x; theta) and the head W, repeated from the meta-learnt W:
        W <- W - alpha * grad_W L(W z(support))                                    (1)
    Outer loop, over theta and the W that (1) starts from:
        min of the sum over tasks of L(W_i z(queries_i))                           (2)

    The inner loop leaves the backbone alone, so the support set passes it once, not once a step:
    the same numbers as the whole network's inner loop, at a fraction of the cost.

    What differs: as in MAML (the loss is a mean; batch norm by the support set's moments).
    """

    name = "anil"
    reference = "Raghu et al. 2020, arXiv:1909.09157"
    summary = "MAML whose inner loop adapts the head only."
    equivariant_to = frozenset({"support-order"})
    hyperparameters = GradientHyperparameters
    recipe = Recipe(steps=800, meta_batch=4, lr=3e-3, validate_every=200)

    def adapted_names(self) -> list[str]:
        return [name for name, _ in self.named_parameters() if name.startswith("head.")]

    def adapt(self, support: Support, ctx: Context) -> PyTree:
        own: Tensors = dict(self.named_parameters())
        head = {name: own[name] for name in self.adapted_names()}
        buffers = self.norm_buffers()
        mode = "record" if self.hp.batch_norm == "support" else self.support_mode(ctx)
        order = self.order if ctx.training else 1
        steps = self.inner_steps(ctx)

        def one_task(data: PyTree, labels: Tensor, mask: Tensor | None) -> PyTree:
            features, moments = self.features(buffers, data, mode)  # (N*K, D), once
            batch = (features, labels, mask)
            start = self.inner_state(head)
            adapted, _, _ = unroll(
                head_loss, head, {}, batch, start, self.inner_update, list(head), steps, order
            )
            # The backbone stays as it is, and so do its moments.
            return self.finished_state(adapted, moments, data)

        return over_tasks(one_task, support.items.data, support.targets.values, support.items.mask)


def head_loss(head: Tensors, buffers: Tensors, batch: PyTree, t: int) -> tuple[Tensor, Tensors]:
    """L(W z) of (1): mean cross-entropy of the head on one task's support features."""
    features, labels, mask = batch  # (N*K, D), (N*K,), (N*K,) or None
    logits = F.linear(features, head["head.weight"], head["head.bias"])  # (N*K, N)
    targets = Targets(labels[None], None if mask is None else mask[None])
    return query_cross_entropy(logits[None], targets), buffers
