"""Every algorithm learns: trained on drawings for a while, it beats its untrained self."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from scipy import stats

from metabench.plugins import load_registry
from metabench_plugins import ALGORITHMS
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.identity import Identity

GAIN, P = 0.05, 0.01
EPISODES = 150
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Budget(NamedTuple):
    """A training that is long enough.

    Attributes:
        steps: of its recipe.
        recipe: what else of the recipe isn't the algorithm's own.
        settings: hyper-parameters that aren't the algorithm's own.
        pixels: whether it stands on the images themselves.
        quick: whether CI can wait for it.
    """

    steps: int
    recipe: Mapping[str, Any] = NOTHING
    settings: Mapping[str, Any] = NOTHING
    pixels: bool = False
    quick: bool = False


EPISODIC = Budget(200)
SUPERVISED = Budget(300)
BUDGETS = {
    "maml": EPISODIC,
    "fomaml": EPISODIC,
    "anil": EPISODIC,
    "reptile": Budget(400),
    "boil": EPISODIC,
    "meta-sgd": EPISODIC,
    "proto-maml": EPISODIC,
    "cavia": Budget(400),
    "imaml": EPISODIC,
    "metagrad": EPISODIC,
    "adaptive-metagrad": Budget(100),
    "maml++": EPISODIC,
    "protonet": Budget(400),
    "matching-networks": Budget(100),
    "relation-network": Budget(200, {"ways": 5}),
    "nearest-centroid": SUPERVISED,
    "baseline++": SUPERVISED,
    "feat": Budget(100),
    "gnn": Budget(400),
    "r2d2": Budget(40, quick=True),
    "lr-d2": Budget(100),
    "metaoptnet-ridge": Budget(100),
    "metaoptnet-svm": Budget(100),
    "baseline": Budget(150, quick=True),
    "finetune": SUPERVISED,
    "meta-model": Budget(200),
    "task-mapping": Budget(200),
    "pca-features": Budget(300, NOTHING, {"head": "mlp"}, pixels=True),
    "autoencoder-features": Budget(300),
    "transductive-finetuning": SUPERVISED,
    "bd-cspn": SUPERVISED,
    "laplacian-shot": SUPERVISED,
    "tim": SUPERVISED,
    "pt-map": SUPERVISED,
}


def test_every_algorithm_has_a_budget() -> None:
    assert set(BUDGETS) == {lazy.name for lazy in ALGORITHMS}


CASES = [
    pytest.param(name, id=name, marks=[] if budget.quick else pytest.mark.slow)
    for name, budget in BUDGETS.items()
]


@pytest.mark.parametrize("name", CASES)
def test_training_is_worth_something(real_lab: Any, name: str) -> None:
    cls, budget = load_registry(strict=True).get("algorithm", name).load(), BUDGETS[name]
    lab = real_lab.with_protocol(queries=10)
    brief = {"steps": budget.steps, "warmup": 0, "validate_every": 0, "select": "last"}
    recipe = cls.recipe.model_copy(update={**brief, **budget.recipe})
    untrained = lab.make(
        cls,
        cls.hyperparameters(**budget.settings),
        backbone=Identity if budget.pixels else Conv4,
        backbone_hp=None if budget.pixels else Conv4Hyperparameters(width=16, downsample="stride"),
        recipe=recipe,
    )
    trained = copy.deepcopy(untrained)
    lab.train(trained, recipe)
    before, after = (lab.accuracies(algorithm, EPISODES) for algorithm in (untrained, trained))
    assert after.mean() - before.mean() > GAIN
    assert stats.ttest_rel(after, before, alternative="greater").pvalue < P
