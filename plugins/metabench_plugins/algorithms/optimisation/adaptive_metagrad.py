"""Adaptive MetaGrad: MetaGrad that starts from a backbone trained on the training classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from metabench import Episodic, GradientHyperparameters, Phase, Recipe
from metabench_plugins.algorithms.optimisation.metagrad import MetaGrad, MetaGradHyperparameters
from metabench_plugins.algorithms.pretrained import PretrainedHyperparameters, pretrained_before


class AdaptiveMetaGradHyperparameters(MetaGradHyperparameters, PretrainedHyperparameters):
    """Those of both."""


class AdaptiveMetaGrad(MetaGrad):
    """`MetaGrad` from a pre-trained backbone; inner loop and outer loop are the same.

    Hypergradients are those of Baydin et al. 2018, https://arxiv.org/abs/1703.04782; as `MetaGrad`
    it isn't MetaGrad of van Erven and Koolen 2016.

    1. The backbone and a linear classifier over all training classes are trained on batches of
       items, by cross-entropy: the phase that `baseline` consists of, shared with every row that
       asks for it with the same settings.
    2. That classifier is thrown away. Theta is the backbone as it came out, with a new head, and
       is meta-trained on episodes by (1) to (4) of `MetaGrad`.

    The rates have to adapt from what suits a new network to what suits a trained one, whose
    gradients are of another size: that is what hypergradients are for.

    What differs: no paper describes it. Chen et al. 2021, "Meta-Baseline" (arXiv:2003.04390), train
    in these two phases, without an inner loop. The rest as in `MetaGrad`.
    """

    name = "adaptive-metagrad"
    summary = "MetaGrad from a backbone that was first trained on the training classes."
    hyperparameters: ClassVar[type[GradientHyperparameters]] = AdaptiveMetaGradHyperparameters
    recipe = Recipe(steps=800, meta_batch=2, lr=1e-3, validate_every=200)

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        before = pretrained_before(self.backbone, self.problem, recipe, self.hp)
        return [*before, Episodic(recipe)]
