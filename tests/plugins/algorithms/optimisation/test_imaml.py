"""iMAML against exact solutions: of a quadratic inner problem, and of a network's, solved long.

The inner problem of `Quadratic` is a ridge regression towards theta, whose solution is one linear
system; so its outer objective can be computed, and differentiated, without any inner step.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metabench import GradientHyperparameters
from metabench.api.items import one_episode
from metabench.api.recipe import Recipe
from metabench.engine.modes import using_engine
from metabench_plugins.algorithms.optimisation.fomaml import FOMAML
from metabench_plugins.algorithms.optimisation.imaml import (
    IMAML,
    IMAMLHyperparameters,
    conjugate_gradients,
)
from metabench_plugins.algorithms.optimisation.maml import MAML, MAMLHyperparameters
from metabench_plugins.backbones.identity import Identity

Lab = Any
LAMBDA, WAYS = 20.0, 3
RECIPE = Recipe(steps=1, meta_batch=2, queries=3)


class Quadratic(IMAML):
    """iMAML with half the squared error of one-hot labels as inner loss."""

    name = "quadratic-imaml"

    def inner_loss(self, params: Any, buffers: Any, batch: Any, t: int, mode: Any) -> Any:
        data, labels, _ = batch
        logits, buffers = self.run(params, buffers, data, mode)
        wanted = F.one_hot(labels, WAYS).to(logits.dtype)
        return 0.5 * (logits - wanted).square().sum(1).mean(), buffers


class Solved:
    """The linear model on pixels of one task, exactly: weights (785, 3), the bias last."""

    def __init__(self, episode: Any) -> None:
        self.x, self.queries = (
            F.pad(data[0].flatten(1), (0, 1), value=1.0)
            for data in (episode.support.items.data, episode.queries.data)
        )
        self.labels = F.one_hot(episode.support.targets.values[0], WAYS).double()
        self.asked = episode.query_targets.values[0]
        self.hessian = self.x.T @ self.x / len(self.x)

    def solution(self, theta: Tensor) -> Tensor:
        """phi*: (H + lambda) phi = X^T Y / n + lambda theta."""
        system = self.hessian + LAMBDA * torch.eye(len(theta), dtype=torch.float64)
        return torch.linalg.solve(system, self.x.T @ self.labels / len(self.x) + LAMBDA * theta)

    def outer(self, phi: Tensor) -> Tensor:
        return F.cross_entropy(self.queries @ phi, self.asked)


def stepped(lab: Lab, kind: Any, backbone: Any, **settings: Any) -> tuple[Any, Any]:
    """An algorithm with the gradient of a meta-step of two tasks, and those tasks."""
    hp = kind.hyperparameters(**settings)
    algorithm = lab.make(kind, hp, backbone=backbone, recipe=RECIPE).train()
    batch = lab.batch(2)
    algorithm.training_step(batch, lab.context("train"))
    return algorithm, batch


@pytest.fixture
def small(lab: Lab) -> Any:
    return lab.with_protocol(ways=WAYS, shots=2, queries=3).double()


def as_matrix(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight, bias[:, None]], 1).T.detach()


EXACT = {"proximal": LAMBDA, "inner_lr": 0.02, "inner_steps": 60, "cg_steps": 10}


def test_on_a_quadratic_the_inner_loop_reaches_the_exact_solution(small: Lab) -> None:
    algorithm, batch = stepped(small, Quadratic, Identity, **EXACT)
    with torch.no_grad():
        phi = algorithm.adapt(batch.support, small.context("train"))["params"]
    theta = as_matrix(algorithm.head.weight, algorithm.head.bias)
    for b in range(2):
        found = as_matrix(phi["head.weight"][b], phi["head.bias"][b])
        torch.testing.assert_close(found, Solved(one_episode(batch, b)).solution(theta))


@pytest.mark.parametrize(("damping", "curvature_damping"), [(0.0, 0.0), (1.0, 10.0)])
def test_on_a_quadratic_the_gradient_is_that_of_the_dense_linear_system(
    small: Lab, damping: float, curvature_damping: float
) -> None:
    settings = {**EXACT, "damping": damping, "curvature_damping": curvature_damping}
    algorithm, batch = stepped(small, Quadratic, Identity, **settings)
    theta = as_matrix(algorithm.head.weight, algorithm.head.bias)
    expected = torch.zeros_like(theta)
    for b in range(2):
        task = Solved(one_episode(batch, b))
        slope = torch.func.grad(task.outer)(task.solution(theta))
        one = torch.eye(len(theta), dtype=torch.float64)
        system = (1 + damping) * one + task.hessian / (LAMBDA + curvature_damping)
        expected += torch.linalg.solve(system, slope) / 2
    found = as_matrix(algorithm.head.weight.grad, algorithm.head.bias.grad)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_on_a_quadratic_it_is_the_finite_difference_of_the_exact_bilevel_objective(
    small: Lab,
) -> None:
    algorithm, batch = stepped(small, Quadratic, Identity, **EXACT)
    theta = as_matrix(algorithm.head.weight, algorithm.head.bias)
    tasks = [Solved(one_episode(batch, b)) for b in range(2)]
    found = as_matrix(algorithm.head.weight.grad, algorithm.head.bias.grad)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        along = torch.randn(theta.shape, generator=generator, dtype=torch.float64)

        def at(by: float, along: Tensor = along) -> float:
            moved = theta + by * along
            return float(sum(task.outer(task.solution(moved)) for task in tasks)) / 2

        expected = (at(1e-5) - at(-1e-5)) / 2e-5
        assert float((found * along).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


# The Hessian's eigenvalues lie between -10 and 18 here.
NETWORK = {"proximal": 30.0, "inner_lr": 0.03, "inner_steps": 40, "cg_steps": 25}


@pytest.mark.parametrize(
    ("option", "engine"),
    [
        *(("support", engine) for engine in ("loop", "vmap", "mixed")),
        *((option, "loop") for option in ("support+1", "running", "batch")),
    ],
)
def test_of_a_network_it_is_the_finite_difference_where_the_inner_problem_is_solved(
    small: Lab, option: str, engine: Any
) -> None:
    with using_engine(engine):
        algorithm, batch = stepped(small, IMAML, small.SmoothConv, batch_norm=option, **NETWORK)
    parameters = list(algorithm.parameters())
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def at(by: float) -> float:
        """The queries' loss at what the inner loop comes to from there."""
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter += by * direction
            logits = small.logits(algorithm, batch.support, batch.queries, "train")
            for parameter, direction in zip(parameters, along, strict=True):
                parameter -= by * direction
        return float(F.cross_entropy(logits.flatten(0, 1), batch.query_targets.values.flatten()))

    found = sum(float((p.grad * d).sum()) for p, d in zip(parameters, along, strict=True))
    expected = (8 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 12e-4
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_proximal_term_and_solver_it_is_first_order_maml(small: Lab) -> None:
    given = {"inner_lr": 0.3, "inner_steps": 3}
    ours, _ = stepped(small, IMAML, small.SmoothConv, proximal=1e-13, cg_steps=0, **given)
    hp = GradientHyperparameters(**given)
    fomaml = small.make(FOMAML, hp, backbone=small.SmoothConv, recipe=RECIPE).train()
    fomaml.training_step(small.batch(2), small.context("train"))
    for one, other in zip(ours.parameters(), fomaml.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)


def system(seed: int, lowest: float) -> tuple[Tensor, Tensor]:
    """A symmetric matrix (8, 8) with eigenvalues from `lowest` to 9, and a right side."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(root)
    values = torch.linspace(lowest, 9, 8, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T, root[0]


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_conjugate_gradients_are_scipys_step_by_step(steps: int) -> None:
    matrix, wanted = system(0, 0.1)
    found = conjugate_gradients(lambda v: matrix @ v, wanted, steps)
    expected, _ = scipy.sparse.linalg.cg(matrix.numpy(), wanted.numpy(), rtol=0, maxiter=steps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


def test_conjugate_gradients_go_on_where_everything_is_solved() -> None:
    matrix, wanted = system(1, 1.0)
    found = conjugate_gradients(lambda v: matrix @ v, wanted, 60)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted))
    nothing = torch.zeros_like(wanted)
    assert torch.equal(conjugate_gradients(lambda v: matrix @ v, nothing, 5), nothing)


def test_conjugate_gradients_stop_where_curvature_is_not_positive() -> None:
    matrix, wanted = system(2, -4.0)

    def solved(steps: int) -> Tensor:
        return conjugate_gradients(lambda v: matrix @ v, wanted, steps)

    iterates = [solved(steps) for steps in range(1, 12)]
    stopped = [step for step in range(10) if torch.equal(iterates[step], iterates[step + 1])]
    # Not at first, but before the solver of a definite system would be done.
    assert stopped == list(range(stopped[0], 10))
    assert 0 < stopped[0] < 8
    # Downhill all the way: 1/2 x A x - b x falls from one to the next.
    heights = [float(0.5 * x @ matrix @ x - wanted @ x) for x in iterates[: stopped[0] + 1]]
    assert heights == sorted(heights, reverse=True)
    # At first: the right side, as without a solver.
    assert torch.equal(conjugate_gradients(lambda v: -v, wanted, 3), wanted)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that were made and are still held; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves(args) if isinstance(x, Tensor)}
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is None or storage in self.seen or id(storage) in given:
                continue
            self.seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, storage.nbytes())
        return out

    def freed(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_memory_is_flat_in_the_inner_steps_and_mamls_is_not(lab: Lab, engine: Any) -> None:
    lab = lab.with_protocol(shots=2, queries=2)
    batch = lab.batch(2)

    def peak(kind: Any, hp: Any) -> int:
        algorithm = lab.make(kind, hp, backbone=lab.SmoothConv).train()
        with using_engine(engine), Live() as live:
            algorithm.training_step(batch, lab.context("train"))
        return live.peak

    few, many = (peak(IMAML, IMAMLHyperparameters(inner_steps=steps)) for steps in (2, 20))
    assert many <= 1.01 * few
    few, many = (peak(MAML, MAMLHyperparameters(inner_steps=steps)) for steps in (2, 20))
    assert many > 4 * few
