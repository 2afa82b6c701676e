"""Heads that are meta-trained on features learnt without labels: what their training is worth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from scipy import stats

from metabench import Recipe
from metabench_plugins.algorithms.unsupervised.autoencoder_features import AutoencoderFeatures
from metabench_plugins.algorithms.unsupervised.pca_features import PCAFeatures
from metabench_plugins.backbones.identity import Identity

EPISODES, CHANCE = 150, 0.2
BRIEF = Recipe(steps=150, batch_size=64, queries=5, lr=3e-3, select="last")
LONGER = BRIEF.model_copy(update={"steps": 400, "meta_batch": 4})
"""MAML that isn't trained adapts to a task, too, and is worth much; what it learns comes late."""
CASES = [
    pytest.param("cnn", BRIEF, 0.02, id="cnn"),
    pytest.param("rnn", BRIEF, 0.02, id="rnn"),
    pytest.param("maml", LONGER, 0.01, id="maml", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", [PCAFeatures, AutoencoderFeatures], ids=["pca", "autoencoder"])
@pytest.mark.parametrize(("head", "recipe", "gain"), CASES)
def test_training_the_head_is_worth_something(
    real_lab: Any, kind: Any, head: str, recipe: Recipe, gain: float
) -> None:
    """It beats itself on the same fitted features as they were before the first episode."""
    lab = real_lab.with_protocol(queries=10)
    hp = kind.hyperparameters(head=head, width=16 if head == "cnn" else 32)
    of_pixels = {"backbone": Identity} if kind is PCAFeatures else {}
    fitted = lab.make(kind, hp, recipe=recipe, **of_pixels)
    fitted.phases = fitted.fitting
    lab.train(fitted, recipe)
    del fitted.phases
    trained = copy.deepcopy(fitted)
    trained.fitting = lambda recipe: []
    lab.train(trained, recipe)
    before, after = (lab.accuracies(algorithm, EPISODES) for algorithm in (fitted, trained))
    assert stats.ttest_rel(after, before, alternative="greater").pvalue < 0.01
    assert after.mean() > max(before.mean(), CHANCE + 0.05) + gain
