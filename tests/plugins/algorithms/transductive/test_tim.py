"""TIM against the paper's objective in NumPy, its solvers against loops, and alpha-TIM."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from metabench.errors import UsageError
from metabench_plugins.algorithms.classes import class_means, class_membership
from metabench_plugins.algorithms.transductive.tim import TIM, TIMHyperparameters, entropy
from metabench_plugins.backbones.identity import Identity


def make(lab: Any, **settings: Any) -> TIM:
    return lab.make(TIM, TIMHyperparameters(**settings), backbone=Identity)  # type: ignore[no-any-return]


def predicted(lab: Any, algorithm: TIM, tasks: Any) -> torch.Tensor:
    return algorithm.predict(algorithm.adapt(tasks.support, lab.context()), tasks.queries, None)


def parts(algorithm: TIM, tasks: Any) -> tuple[torch.Tensor, ...]:
    """Weights to begin with, normalised support features, their classes, normalised queries."""
    member = class_membership(tasks.support)
    known, asked = (algorithm.normalised(x.data) for x in (tasks.support.items, tasks.queries))
    return class_means(known, member), known, member.double(), asked


def dense(tasks: Any) -> Any:
    """The same tasks without zeros: Adam makes much of what rounding leaves of a zero gradient."""
    support, queries = (
        x._replace(data=x.data + 0.2 * x.data.roll(1, -1).cos())
        for x in (tasks.support.items, tasks.queries)
    )
    return tasks._replace(support=tasks.support._replace(items=support), queries=queries)


def probabilities(x: np.ndarray, w: np.ndarray, tau: float) -> np.ndarray:
    """Their logarithms, (n, N), by distances."""
    return log_softmax(-tau / 2 * ((x[:, None] - w) ** 2).sum(-1), axis=1)


def of_the_paper(
    w: np.ndarray, known: np.ndarray, y: np.ndarray, asked: np.ndarray, hp: TIMHyperparameters
) -> float:
    """The objective of one task; of order 1, or of alpha-TIM."""
    cross = -probabilities(known, w, hp.temperature)[range(len(y)), y].mean()
    p = np.exp(probabilities(asked, w, hp.temperature))
    a = hp.entropy_order
    if a == 1:
        marginal = -(p.mean(0) * np.log(p.mean(0))).sum()
        conditional = -(p * np.log(p)).sum(1).mean()
    else:
        marginal = (1 - (p.mean(0) ** a).sum()) / (a - 1)
        conditional = (1 - (p**a).sum(1).mean()) / (a - 1)
    return float(hp.support_weight * cross - marginal + hp.conditional_weight * conditional)


@pytest.mark.parametrize("order", [1.0, 2.0, 7.0])
def test_adam_on_the_papers_objective(lab, draw_tasks, order: float) -> None:
    """Its gradient by differences in NumPy, and Adam in loops. (easyfsl's TIM has cosines.)"""
    tasks = dense(draw_tasks([2, 1, 2], [4, 1, 3], dims=4))
    algorithm = make(
        lab, steps=6, lr=0.02, support_weight=0.3, conditional_weight=0.5, entropy_order=order
    )
    start, known, wanted, asked = parts(algorithm, tasks)
    objective = algorithm.objective(start, known, wanted, asked)
    found = algorithm.descended(start, known, wanted, asked)
    for task in range(2):
        x, z = known[task].numpy(), asked[task].numpy()
        y, w = tasks.support.targets.values[task].numpy(), start[task].numpy().copy()
        hp = algorithm.hp
        assert float(objective[task]) == pytest.approx(of_the_paper(w, x, y, z, hp), rel=1e-10)

        def value(w: np.ndarray, x: Any = x, y: Any = y, z: Any = z, hp: Any = hp) -> float:
            return of_the_paper(w, x, y, z, hp)

        first = second = np.zeros((3, 4))
        for step in range(1, 7):
            moves = 1e-5 * np.eye(12).reshape(12, 3, 4)
            slope = np.array([value(w + d) - value(w - d) for d in moves]).reshape(3, 4) / 2e-5
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            w -= 0.02 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(found[task], w, atol=1e-5)


def test_the_alternating_solver_in_loops(lab, draw_tasks) -> None:
    """Equations (3) and (4), summand by summand."""
    tasks = draw_tasks([2, 1, 2], [4, 1, 3], dims=4)
    settings = {"support_weight": 0.3, "conditional_weight": 0.5}
    algorithm = make(lab, solver="alternating", steps=3, **settings)
    start, known, wanted, asked = parts(algorithm, tasks)
    found = algorithm.alternated(start, known, wanted, asked)
    for task in range(2):
        x, z, y = known[task].numpy(), asked[task].numpy(), wanted[task].numpy()
        w = start[task].numpy()
        for _ in range(3):
            p, p_known = (np.exp(probabilities(v, w, 15.0)) for v in (z, x))
            q = p**1.5 / np.sqrt((p**1.5).sum(0))
            q /= q.sum(1, keepdims=True)
            moved = np.empty_like(w)
            for n in range(3):
                of_support, of_queries = 0.3 / 1.5, len(x) / len(z)
                top = of_support * sum(
                    y[i, n] * x[i] + p_known[i, n] * (w[n] - x[i]) for i in range(len(x))
                ) + of_queries * sum(
                    q[i, n] * z[i] + p[i, n] * (w[n] - z[i]) for i in range(len(z))
                )
                moved[n] = top / (of_support * y[:, n].sum() + of_queries * q[:, n].sum())
            w = moved
        np.testing.assert_allclose(found[task], w, rtol=1e-9)


@pytest.mark.parametrize("solver", ["gradient", "alternating"])
def test_its_loss_decreases(lab, draw_tasks, solver: str) -> None:
    tasks = draw_tasks([1] * 5, [15] * 5, tasks=8)
    values = []
    for steps in (0, 3, 30):
        algorithm = make(lab, solver=solver, steps=steps)
        start, known, wanted, asked = parts(algorithm, tasks)
        solve = algorithm.descended if solver == "gradient" else algorithm.alternated
        weights = solve(start, known, wanted, asked)
        values.append(algorithm.objective(weights, known, wanted, asked))
    assert (values[1] < values[0]).all()
    assert (values[2] < values[1]).all()


def test_both_solvers_come_to_much_the_same(lab, draw_tasks) -> None:
    tasks = draw_tasks([1] * 5, [15] * 5, tasks=20)
    one = predicted(lab, make(lab), tasks).argmax(-1)
    other = predicted(lab, make(lab, solver="alternating", steps=150), tasks).argmax(-1)
    assert (one == other).double().mean() > 0.9
    plain = predicted(lab, make(lab, steps=0), tasks).argmax(-1)
    right = (one == tasks.classes).double().mean(1) - (plain == tasks.classes).double().mean(1)
    assert right.mean() > 3 * right.std() / 20**0.5


def test_logits_are_distances_but_for_what_classes_share(lab, draw_tasks) -> None:
    tasks = draw_tasks([2, 2, 2], [3, 3, 3])
    algorithm = make(lab, steps=0)
    start, _, _, asked = parts(algorithm, tasks)
    distances = -15 / 2 * torch.cdist(asked, start).square()
    logits = predicted(lab, algorithm, tasks)
    torch.testing.assert_close(logits.log_softmax(-1), distances.log_softmax(-1))


def test_before_its_first_step_it_predicts_as_easyfsl(lab, draw_tasks, easyfsl_predicts) -> None:
    """One shot, length 1: cosines are distances. From there easyfsl's moves cosine prototypes."""
    tasks = draw_tasks([1] * 5, [15] * 5)
    logits = predicted(lab, make(lab, steps=0), tasks)
    for task in range(2):
        settings = {"feature_normalization": 2.0, "fine_tuning_steps": 0}
        cosines = easyfsl_predicts("TIM", *tasks.of(task), **settings)
        torch.testing.assert_close(logits[task].softmax(-1), (15 * cosines).softmax(-1))


def test_entropies_of_an_order_near_1_are_shannons() -> None:
    p = torch.from_numpy(softmax(np.random.default_rng(0).normal(size=(5, 4)), axis=1))
    torch.testing.assert_close(entropy(p, 1 + 1e-6), entropy(p, 1.0), rtol=1e-5, atol=1e-6)
    certain = torch.tensor([1.0, 0.0, 0.0])
    assert float(entropy(certain, 1.0)) == float(entropy(certain, 3.0)) == 0


def test_alpha_tim_bears_unbalanced_queries(lab, draw_tasks) -> None:
    """Shannon's marginal entropy shares them out; of order 2, with the authors' weights, less."""
    tasks = draw_tasks([5] * 5, [45, 12, 10, 5, 3], tasks=20, spread=0.9)
    shannon = predicted(lab, make(lab), tasks)
    settings = {"entropy_order": 5.0, "support_weight": 1.0, "conditional_weight": 1.0}
    tsallis = predicted(lab, make(lab, **settings), tasks)
    right = [(x.argmax(-1) == tasks.classes).double().mean(1) for x in (shannon, tsallis)]
    gain = right[1] - right[0]
    assert gain.mean() > 3 * gain.std() / 20**0.5


def test_alpha_tim_has_no_alternating_solver(lab) -> None:
    with pytest.raises(UsageError, match="alternating"):
        make(lab, solver="alternating", entropy_order=2.0)
