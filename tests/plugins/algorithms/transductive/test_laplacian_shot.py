"""LaplacianShot: its objective, easyfsl, SciPy, and the prototypes that it comes from."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from metabench_plugins.algorithms.metric.nearest_centroid import (
    NearestCentroid,
    NearestCentroidHyperparameters,
)
from metabench_plugins.algorithms.transductive.laplacian_shot import (
    LaplacianShot,
    LaplacianShotHyperparameters,
    bound_updates,
    neighbourhood,
)
from metabench_plugins.backbones.identity import Identity


def relaxed(y: np.ndarray, unary: np.ndarray, near: np.ndarray, weight: float) -> float:
    """(1) over the simplex, with the entropy as its barrier, but for a constant."""
    return float((y * np.log(y) + y * unary).sum() - weight / 2 * (y * (near @ y)).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.integers(2, 12), st.integers(2, 5))
def test_updates_lower_the_objective(seed: int, weight: float, count: int, ways: int) -> None:
    """Each of them, where the affinities are positive semi-definite, as the bound asks for."""
    rng = np.random.default_rng(seed)
    unary, points = 3 * rng.random((count, ways)), rng.normal(size=(count, 3))
    near = np.exp(-((points[:, None] - points) ** 2).sum(-1))
    batch = torch.from_numpy(unary)[None], torch.from_numpy(near)[None]
    values = [
        relaxed(bound_updates(*batch, weight, step)[0].softmax(-1).numpy(), unary, near, weight)
        for step in range(8)
    ]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(values))
    assert values[-1] < values[0]


def test_an_update_minimises_its_bound() -> None:
    """As SciPy finds it: the tangent at the assignments of before stands for the concave part."""
    rng = np.random.default_rng(0)
    unary, near = rng.random((4, 3)), (rng.random((4, 4)) < 0.5).astype(float)
    before = softmax(-unary, axis=1)

    def bound(logits: np.ndarray) -> float:
        y = softmax(logits.reshape(4, 3), axis=1)
        return float((y * (np.log(y) + unary - 0.7 * near @ before)).sum())

    best = softmax(minimize(bound, np.zeros(12), tol=1e-12).x.reshape(4, 3), axis=1)
    batch = torch.from_numpy(unary)[None], torch.from_numpy(near)[None]
    after = bound_updates(*batch, 0.7, 1)[0].softmax(-1)
    np.testing.assert_allclose(after, best, atol=1e-5)


def test_neighbours_are_those_of_scikit_learn(draw_tasks) -> None:
    queries = draw_tasks([1, 1], [9, 4]).queries.data
    near = neighbourhood(queries, 3)
    for task in range(2):
        points = queries[task].numpy()
        graph = NearestNeighbors(n_neighbors=3).fit(points).kneighbors_graph()  # without itself
        np.testing.assert_array_equal(near[task], graph.toarray())


def test_assignments_are_those_of_easyfsl(lab, draw_tasks, easyfsl_predicts) -> None:
    """Its rectification takes epsilon = 1 and predicts the queries where they were, not moved.

    So they are put where nothing moves them. Its knn counts the query itself; it stops early.
    """
    tasks = draw_tasks([3, 3, 3, 3, 3], [6, 2, 9, 1, 7], spread=1.0)
    shift = tasks.support.items.data.mean(1, keepdim=True)
    queries = tasks.queries.data - tasks.queries.data.mean(1, keepdim=True) + shift
    hp = LaplacianShotHyperparameters(normalisation="un", epsilon=1.0)
    algorithm = lab.make(LaplacianShot, hp, backbone=Identity)
    state = algorithm.adapt(tasks.support, lab.context())
    found = algorithm.predict(state, tasks.queries._replace(data=queries), lab.context())
    for task in range(2):
        known, labels, _ = tasks.of(task)
        expected = easyfsl_predicts(  # its affinities are float32
            "LaplacianShot", known.float(), labels, queries[task].float(), knn=3
        )
        assert torch.equal(found[task].argmax(-1), expected.argmax(-1))
        torch.testing.assert_close(found[task].softmax(-1).float(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("without", [{"weight": 0.0}, {"iterations": 0}])
@torch.no_grad()
def test_without_agreement_it_is_the_nearest_centroid(lab, without: dict[str, float]) -> None:
    lab = lab.double().with_protocol(shots=3)
    hp = LaplacianShotHyperparameters(rectify=False, normalisation="l2n", **without)
    algorithm = lab.make(LaplacianShot, hp)
    plain = lab.make(NearestCentroid, NearestCentroidHyperparameters(normalisation="l2n"))
    support, queries, _, _ = lab.batch(2)
    expected = lab.logits(plain, support, queries)
    torch.testing.assert_close(lab.logits(algorithm, support, queries), expected)
