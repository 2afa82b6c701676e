"""What seeing all queries is worth: each head beats the inductive one on the same features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metabench import Recipe
from metabench.api.algorithm import Algorithm
from metabench_plugins.algorithms.metric.nearest_centroid import (
    NearestCentroid,
    NearestCentroidHyperparameters,
)
from metabench_plugins.algorithms.transductive.bd_cspn import BDCSPN
from metabench_plugins.algorithms.transductive.laplacian_shot import LaplacianShot
from metabench_plugins.algorithms.transductive.pt_map import PTMAP
from metabench_plugins.algorithms.transductive.tim import TIM, TIMHyperparameters
from metabench_plugins.backbones.conv4 import Conv4Hyperparameters

# On features of a shorter training the queries are no help: then classes are no clusters.
RECIPE = Recipe(steps=1000, batch_size=64)
EPISODES = 400
WIDER = Conv4Hyperparameters(width=16, downsample="stride")
HEADS: dict[str, tuple[type[Algorithm], Any]] = {
    "bd-cspn": (BDCSPN, None),
    "laplacian-shot": (LaplacianShot, None),
    "tim": (TIM, None),
    "tim alternating": (TIM, TIMHyperparameters(solver="alternating")),
    "pt-map": (PTMAP, None),
}


@pytest.fixture(scope="module")
def scored(real_lab: Any) -> Callable[..., np.ndarray]:
    """Accuracies in the same balanced episodes, on the features of one pre-trained backbone."""
    lab = real_lab.with_protocol(queries=15)
    centroid = lab.make(NearestCentroid, recipe=RECIPE, backbone_hp=WIDER)
    lab.train(centroid, RECIPE)
    known = centroid.state_dict()

    def score(kind: type[Algorithm], hp: Any) -> np.ndarray:
        algorithm = lab.make(kind, hp, recipe=RECIPE, backbone_hp=WIDER)
        own = algorithm.state_dict()
        algorithm.load_state_dict({name: known[name] for name in own})
        found: np.ndarray = lab.accuracies(algorithm, EPISODES)
        return found

    return score


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_it_beats_the_nearest_centroid(scored: Any, name: str) -> None:
    """By whichever normalisation of features the centroid does better."""
    inductive = [
        scored(NearestCentroid, NearestCentroidHyperparameters(normalisation=how))
        for how in ("l2n", "cl2n")
    ]
    best = max(inductive, key=lambda accuracies: float(accuracies.mean()))
    found = scored(*HEADS[name])
    assert stats.ttest_rel(found, best, alternative="greater").pvalue < 0.01
    assert found.mean() > best.mean() + 0.01
