"""BD-CSPN against the paper's equations in loops, and against easyfsl."""

import numpy as np
import pytest
import torch

from metabench_plugins.algorithms.classes import class_membership, cosine_similarities
from metabench_plugins.algorithms.transductive.bd_cspn import (
    BDCSPN,
    BDCSPNHyperparameters,
    rectified,
)
from metabench_plugins.backbones.identity import Identity


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def of_the_paper(
    known: np.ndarray, labels: np.ndarray, asked: np.ndarray, epsilon: float, most: int | None
) -> np.ndarray:
    """(Q, N) cosines for one task, item by item."""
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, asked))
    ways = labels.max() + 1
    basic = [known[labels == n].mean(0) for n in range(ways)]
    asked = asked + (known.mean(0) - asked.mean(0))
    likeness = np.array([[np.exp(epsilon * cosine(x, p)) for p in basic] for x in asked])
    sure = likeness / likeness.sum(1, keepdims=True)
    prototypes = []
    for n in range(ways):
        joined = [q for q in range(len(asked)) if sure[q].argmax() == n]
        joined = sorted(joined, key=lambda q, n=n: -sure[q, n])[:most]
        items = [*known[labels == n], *asked[joined]]
        weights = np.array([np.exp(epsilon * cosine(x, basic[n])) for x in items])
        prototypes.append((weights[:, None] * np.array(items)).sum(0) / weights.sum())
    return np.array([[cosine(x, p) for p in prototypes] for x in asked])


@pytest.mark.parametrize("most", [None, 1, 3])
def test_scores_are_those_of_the_paper(lab, draw_tasks, most: int | None) -> None:
    tasks = draw_tasks([1, 3, 2], [7, 2, 5], spread=1.0)
    hp = BDCSPNHyperparameters(epsilon=4.0, confident=most)
    algorithm = lab.make(BDCSPN, hp, backbone=Identity)
    state = algorithm.adapt(tasks.support, lab.context())
    scores = algorithm.predict(state, tasks.queries, lab.context())
    for task in range(2):
        known, labels, asked = (x.numpy() for x in tasks.of(task))
        expected = of_the_paper(known, labels, asked, 4.0, most)
        np.testing.assert_allclose(scores[task], expected, rtol=1e-10)


def test_the_prototypes_are_those_of_easyfsl(draw_tasks, easyfsl_predicts) -> None:
    """Which takes epsilon = 1, lets all queries join, and scores them where they were."""
    tasks = draw_tasks([3, 3, 3, 3, 3], [6, 2, 9, 1, 7], spread=1.0)
    member = class_membership(tasks.support)
    prototypes, moved = rectified(
        tasks.support.items.data, member, tasks.queries.data, epsilon=1.0, confident=None
    )
    scores = cosine_similarities(tasks.queries.data, prototypes)
    assert not torch.allclose(scores, cosine_similarities(moved, prototypes), atol=1e-3)
    for task in range(2):
        torch.testing.assert_close(scores[task], easyfsl_predicts("BDCSPN", *tasks.of(task)))


def test_easyfsl_agrees_where_nothing_has_to_be_moved(lab, draw_tasks, easyfsl_predicts) -> None:
    tasks = draw_tasks([3, 3, 3, 3, 3], [6, 2, 9, 1, 7], spread=1.0)
    shift = tasks.support.items.data.mean(1, keepdim=True)
    queries = tasks.queries.data - tasks.queries.data.mean(1, keepdim=True) + shift
    hp = BDCSPNHyperparameters(normalisation="un", epsilon=1.0, confident=None)
    algorithm = lab.make(BDCSPN, hp, backbone=Identity)
    state = algorithm.adapt(tasks.support, lab.context())
    scores = algorithm.predict(state, tasks.queries._replace(data=queries), lab.context())
    for task in range(2):
        known, labels, _ = tasks.of(task)
        expected = easyfsl_predicts("BDCSPN", known, labels, queries[task])
        torch.testing.assert_close(scores[task], expected)
