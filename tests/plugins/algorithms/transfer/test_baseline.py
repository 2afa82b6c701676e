"""The baseline's head against PyTorch's SGD, and against the optimum that SciPy finds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from metabench_plugins.algorithms.transfer.baseline import (
    Baseline,
    BaselineHyperparameters,
    fit_head,
)
from metabench_plugins.backbones.identity import Identity

LABELS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0], [2, 1, 0, 0, 1, 2, 2, 2]])
MEMBER = F.one_hot(LABELS, 3).bool()


def some_features() -> torch.Tensor:
    return torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_step_is_that_of_sgd(momentum: float) -> None:
    hp = BaselineHyperparameters(
        head_steps=25, head_lr=0.05, head_momentum=momentum, head_weight_decay=0.02
    )
    features = some_features()
    weight, bias = fit_head(features, MEMBER, hp)
    for b in range(2):
        head = torch.nn.Linear(6, 3).double()
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(
            head.parameters(), lr=0.05, momentum=momentum, weight_decay=0.02
        )
        for _ in range(25):
            optimizer.zero_grad()
            F.cross_entropy(head(features[b]), LABELS[b]).backward()
            optimizer.step()
        torch.testing.assert_close(weight[b], head.weight.detach())
        torch.testing.assert_close(bias[b], head.bias.detach())


def plainly_fitted(
    features: torch.Tensor, member: torch.Tensor, hp: BaselineHyperparameters
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same descent on one episode's weights themselves, for (S, D) features."""
    wanted = member.double()
    real, count = wanted.sum(-1, keepdim=True), wanted.sum()
    weight, bias = features.new_zeros(member.shape[-1], features.shape[-1]), wanted.new_zeros(3)
    weight_speed, bias_speed = 0 * weight, 0 * bias
    for _ in range(hp.head_steps):
        error = ((features @ weight.T + bias).softmax(-1) * real - wanted) / count
        slope = error.T @ features + hp.head_weight_decay * weight
        weight_speed = hp.head_momentum * weight_speed + slope
        bias_speed = hp.head_momentum * bias_speed + error.sum(0) + hp.head_weight_decay * bias
        weight, bias = weight - hp.head_lr * weight_speed, bias - hp.head_lr * bias_speed
    return weight, bias


def test_all_episodes_of_a_batch_at_once_are_each_by_itself() -> None:
    """With padding, and with more dimensions than items and fewer."""
    hp = BaselineHyperparameters(head_weight_decay=0.01)
    member = MEMBER.clone()
    member[1, 5:] = False
    for size in (3, 200):
        generator = torch.Generator().manual_seed(size)
        features = torch.randn(2, 8, size, dtype=torch.float64, generator=generator)
        weight, bias = fit_head(features, member, hp)
        for b in range(2):
            expected = plainly_fitted(features[b], member[b], hp)
            torch.testing.assert_close((weight[b], bias[b]), expected, rtol=1e-10, atol=1e-12)


def test_many_steps_reach_the_optimum() -> None:
    decay = 0.05
    hp = BaselineHyperparameters(head_steps=3000, head_lr=0.05, head_weight_decay=decay)
    features = some_features()
    weight, bias = fit_head(features, MEMBER, hp)
    for b in range(2):
        x = np.concatenate([features[b].numpy(), np.ones((8, 1))], axis=1)
        labels = LABELS[b].numpy()

        def objective(flat: np.ndarray, x: np.ndarray = x, labels: np.ndarray = labels) -> float:
            logits = x @ flat.reshape(3, 7).T
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            return float(-log_p[range(8), labels].mean() + decay / 2 * flat @ flat)

        best = minimize(objective, np.zeros(21), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(weight[b], best.reshape(3, 7)[:, :6], atol=1e-5)
        np.testing.assert_allclose(bias[b], best.reshape(3, 7)[:, 6], atol=1e-5)


def test_no_steps_know_nothing() -> None:
    weight, bias = fit_head(some_features(), MEMBER, BaselineHyperparameters(head_steps=0))
    assert weight.shape == (2, 3, 6)
    assert not weight.any()
    assert not bias.any()


@torch.no_grad()
def test_features_are_not_normalised(lab) -> None:
    """Logits are linear in the features of a query, of whatever length."""
    lab = lab.double()
    algorithm = lab.make(Baseline)
    support, queries, _, _ = lab.batch(2)
    known = support._replace(items=algorithm.embed_sets(support.items))
    asked = algorithm.embed_sets(queries)
    state = algorithm.adapt(known, lab.context())
    origin = algorithm.predict(state, asked._replace(data=asked.data * 0), lab.context())
    single = algorithm.predict(state, asked, lab.context()) - origin
    double = algorithm.predict(state, asked._replace(data=asked.data * 2), lab.context()) - origin
    torch.testing.assert_close(double, 2 * single)


def test_over_pixels_nothing_is_trained(lab) -> None:
    algorithm = lab.make(Baseline, backbone=Identity)
    assert algorithm.phases(Baseline.recipe) == []
    assert lab.accuracies(algorithm, 20).mean() > 0.25
