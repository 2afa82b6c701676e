"""PT-MAP against NumPy with the authors' QR and stopping, SciPy, and easyfsl."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from metabench_plugins.algorithms.classes import class_membership
from metabench_plugins.algorithms.transductive.pt_map import PTMAP, PTMAPHyperparameters, sinkhorn
from metabench_plugins.backbones.identity import Identity


def make(lab: Any, **settings: Any) -> PTMAP:
    return lab.make(PTMAP, PTMAPHyperparameters(**settings), backbone=Identity)  # type: ignore[no-any-return]


def transport(cost: np.ndarray, sharpness: float) -> np.ndarray:
    """Sinkhorn's iterations by dividing rows and columns, until nothing changes."""
    plan = np.exp(-sharpness * cost)
    plan /= plan.sum()
    for _ in range(1000):
        before = plan.sum(1)
        plan /= plan.sum(1, keepdims=True)
        plan *= len(cost) / cost.shape[1] / plan.sum(0)
        if np.abs(before - plan.sum(1)).max() < 1e-12:
            break
    return plan


def of_the_authors(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(Q, N) the last plan of one task: power, QR, length, centring, length, then 20 moves."""
    both = np.concatenate([known, asked])
    both = np.linalg.qr(((both + 1e-6) ** 0.5).T, mode="r").T
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    parts = [both[: len(known)], both[len(known) :]]
    parts = [x - x.mean(0) for x in parts]
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts)
    one_hot = np.eye(labels.max() + 1)[labels]
    centres = one_hot.T @ known / one_hot.sum(0)[:, None]
    for move in range(21):
        plan = transport(((asked[:, None] - centres) ** 2).sum(-1), 10.0)
        weights = np.concatenate([one_hot, plan])
        means = weights.T @ np.concatenate([known, asked]) / weights.sum(0)[:, None]
        if move < 20:
            centres += 0.2 * (means - centres)
    return plan


def test_the_plan_is_that_of_the_authors_algorithm(lab, draw_tasks) -> None:
    """Which keeps all inner products through its QR: vectors are longer than items are many."""
    for shots, dims in (([1, 3, 2], 6), ([2, 2, 2], 40)):
        tasks = draw_tasks(shots, [7, 2, 6], dims=dims)
        algorithm = make(lab, transports=500)
        state = algorithm.adapt(tasks.support, lab.context())
        plan = algorithm.predict(state, tasks.queries, lab.context()).exp()
        for task in range(2):
            expected = of_the_authors(*(x.numpy() for x in tasks.of(task)))
            np.testing.assert_allclose(plan[task], expected, atol=1e-5)


def test_few_iterations_are_enough(lab, draw_tasks) -> None:
    """As each transport begins where the one before ended; every class gets its share."""
    tasks = draw_tasks([1] * 5, [15] * 5, tasks=4, dims=64)
    state = make(lab).adapt(tasks.support, lab.context())
    plan = make(lab).predict(state, tasks.queries, lab.context()).exp()
    best = make(lab, transports=200).predict(state, tasks.queries, lab.context()).exp()
    torch.testing.assert_close(plan, best, atol=0.01, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((4, 5), 15.0, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(2), torch.ones(4, 75).double(), atol=0.01, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 6), st.floats(0.1, 4.0))
def test_marginals_hold(seed: int, count: int, ways: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(scale * rng.random((2, count, ways)))
    plan = sinkhorn(scores, 300)[0].exp()
    columns = torch.full((2, ways), count / ways, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(1), columns)
    torch.testing.assert_close(plan.sum(2), torch.ones(2, count).double(), atol=1e-6, rtol=0)


def test_the_transport_is_the_optimum_that_scipy_finds() -> None:
    cost = np.random.default_rng(0).random((4, 2))

    def objective(flat: np.ndarray) -> float:
        return float((flat * cost.ravel()).sum() + (flat * np.log(flat)).sum() / 3.0)

    rows = np.kron(np.eye(4), np.ones(2))
    column = np.kron(np.ones(4), [1, 0])  # the other one follows
    constraints = [
        {"type": "eq", "fun": lambda x: rows @ x - 1},
        {"type": "eq", "fun": lambda x: column @ x - 2},
    ]
    best = minimize(
        objective,
        np.full(8, 0.5),
        bounds=[(1e-9, 1)] * 8,
        constraints=constraints,
        options={"ftol": 1e-14},
    ).x
    plan = sinkhorn(torch.from_numpy(-3.0 * cost)[None], 200)[0].exp()[0]
    np.testing.assert_allclose(plan, best.reshape(4, 2), atol=1e-5)


def test_moves_and_transports_are_those_of_easyfsl(lab, draw_tasks, easyfsl_predicts) -> None:
    """On features after the power alone: it neither scales nor centres them, unlike the authors."""
    tasks = draw_tasks([3] * 5, [6] * 5)
    known, asked = ((x.data + 1e-6) ** 0.5 for x in (tasks.support.items, tasks.queries))
    for moves in (0, 1, 10):
        algorithm = make(lab, iterations=moves, transports=500)
        plan = algorithm.assigned(known, class_membership(tasks.support), asked).exp()
        for task in range(2):
            expected = easyfsl_predicts("PTMAP", *tasks.of(task), fine_tuning_steps=moves)
            # It stops where an iteration changes little.
            torch.testing.assert_close(plan[task], expected, atol=0.01, rtol=0)
            assert torch.equal(plan[task].argmax(-1), expected.argmax(-1))
    whole = algorithm.predict(
        algorithm.adapt(tasks.support, lab.context()), tasks.queries, lab.context()
    )
    assert not torch.allclose(whole.exp(), plan, atol=0.01)


def test_it_takes_queries_for_balanced(lab, draw_tasks) -> None:
    """What it gains where they are, it loses where they aren't."""
    gains = []
    for queries in ([15] * 5, [45, 12, 10, 5, 3]):
        tasks = draw_tasks([1] * 5, queries, tasks=40, dims=32, spread=0.8)
        state = make(lab).adapt(tasks.support, lab.context())
        found = make(lab).predict(state, tasks.queries, lab.context()).argmax(-1)
        known, asked = tasks.support, tasks.queries.data
        nearest = torch.cdist(asked, known.items.data).argmin(-1)
        plain = known.targets.values.gather(1, nearest)
        right = [(x == tasks.classes).double().mean() for x in (found, plain)]
        gains.append(float(right[0] - right[1]))
    assert gains[0] > 0.05
    assert gains[1] < gains[0] - 0.1
