"""phi*: against scikit-learn's logistic regression, and PyTorch's SGD on a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from metabench.errors import MetabenchError
from metabench_plugins.algorithms.task_mapping.solutions import (
    conjugate_gradients,
    head_optimum,
    linear,
    network_solution,
    network_values,
    right_share,
)

LABELS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0, 1, 2], [2, 1, 0, 0, 1, 2, 2, 2, 1, 1]])
MEMBER = F.one_hot(LABELS, 3).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uneven() -> Tensor:
    """The second task has six items, and then padding."""
    member = MEMBER.clone()
    member[1, 6:] = False
    return member


@settings(max_examples=10, deadline=None)
@given(
    decay=st.sampled_from([1e-3, 1e-2, 0.3, 10.0]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    size=st.sampled_from([2, 15]),
)
def test_the_head_is_that_of_scikit_learn(decay: float, scale: float, size: int) -> None:
    """Which sums cross-entropies, and doesn't penalise a bias unless it is a weight of a 1."""
    features = scale * drawn(2, 10, size, seed=size)
    member = uneven()
    found = head_optimum(features, member, decay)
    for b in range(2):
        kept = member[b].any(-1)
        x = np.concatenate([features[b, kept].numpy(), np.ones((int(kept.sum()), 1))], axis=1)
        # 1 / C is the penalty of a sum over items.
        model = LogisticRegression(
            C=1 / (decay * len(x)),
            fit_intercept=False,
            tol=1e-9,
            max_iter=10_000,
            solver="newton-cg",
        )
        model.fit(x, LABELS[b, kept].numpy())
        np.testing.assert_allclose(found[b], model.coef_, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_zero_there_and_heads_sum_to_zero() -> None:
    features, member = drawn(2, 10, 4), uneven()
    found = head_optimum(features, member, 0.01).requires_grad_()
    for b in range(2):
        kept = member[b].any(-1)
        logits = linear(found, features)[b, kept]
        loss = F.cross_entropy(logits, LABELS[b, kept]) + 0.01 / 2 * found[b].square().sum()
        [slope] = torch.autograd.grad(loss, found, retain_graph=True)
        assert float(slope.abs().max()) < 1e-8
    torch.testing.assert_close(found.sum(1).detach(), torch.zeros(2, 5).double())


def test_float32_gets_close() -> None:
    features = drawn(2, 10, 30)
    exact = head_optimum(features, MEMBER, 1e-3)
    found = head_optimum(features.float(), MEMBER, 1e-3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-3)


def test_of_features_that_tell_nothing_the_head_is_zero() -> None:
    balanced = F.one_hot(torch.arange(6) % 3, 3).bool()[None]
    for features in (torch.ones(1, 6, 4), torch.zeros(1, 6, 4), 0.1 * torch.ones(1, 6, 4)):
        assert float(head_optimum(features, balanced, 1e-3).abs().max()) < 1e-3


def test_features_that_are_no_numbers_have_no_optimum() -> None:
    features = drawn(2, 10, 4)
    features[1, 2, 3] = torch.nan
    with pytest.raises(MetabenchError, match="no optimum of a head after 0 steps"):
        head_optimum(features, MEMBER, 0.1)


def test_conjugate_gradients_solve_systems_apart() -> None:
    root = drawn(3, 8, 8)
    matrix = root @ root.mT + torch.eye(8)
    target = drawn(3, 2, 4, seed=1)
    target[2] = 0
    flat = torch.linalg.solve(matrix, target.flatten(1).unsqueeze(-1))

    def times(x: Tensor) -> Tensor:
        return (matrix @ x.flatten(1).unsqueeze(-1)).view_as(x)

    found = conjugate_gradients(times, target, torch.full((3, 1, 1), 1e-12))
    torch.testing.assert_close(found, flat.view(3, 2, 4), rtol=1e-8, atol=1e-10)


class Plain(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        hidden, size = start.shape
        self.hidden, self.head = nn.Linear(size - 1, hidden).double(), nn.Linear(hidden, 3).double()
        with torch.no_grad():
            self.hidden.weight.copy_(start[:, :-1])
            self.hidden.bias.copy_(start[:, -1])
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.hidden(features).relu())


@pytest.mark.parametrize("grad", [True, False])
def test_the_network_is_that_of_sgd_from_the_common_start(grad: bool) -> None:
    features, member, start = drawn(2, 10, 4), uneven(), drawn(6, 5, seed=2)
    with torch.set_grad_enabled(grad):
        head, hidden = network_solution(start, features, member, 20, 0.2, 0.01)
    assert not head.requires_grad
    asked = drawn(2, 7, 4, seed=3)
    values = network_values(head, hidden, asked)
    for b in range(2):
        kept, model = member[b].any(-1), Plain(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(features[b, kept]), LABELS[b, kept]).backward()
            optimizer.step()
        expected = torch.cat([model.head.weight, model.head.bias[:, None]], 1)
        torch.testing.assert_close(head[b], expected.detach())
        expected = torch.cat([model.hidden.weight, model.hidden.bias[:, None]], 1)
        torch.testing.assert_close(hidden[b], expected.detach())
        torch.testing.assert_close(values[b], model(asked[b]).detach())


def test_no_class_is_before_another() -> None:
    features, start = drawn(2, 10, 4), drawn(6, 5, seed=2)
    turned = MEMBER.roll(1, -1)
    head, hidden = network_solution(start, features, MEMBER, 20, 0.2, 0.01)
    other, alike = network_solution(start, features, turned, 20, 0.2, 0.01)
    torch.testing.assert_close((other, alike), (head.roll(1, 1), hidden))
    optimum = head_optimum(features, MEMBER, 0.01)
    torch.testing.assert_close(
        head_optimum(features, turned, 0.01), optimum.roll(1, 1), rtol=1e-6, atol=1e-8
    )


def test_accuracy_leaves_padding_out() -> None:
    logits = F.one_hot(LABELS, 3).float()
    logits[1, 0] = torch.tensor([1.0, 0, 0])  # it is a 2
    logits[1, 8] = torch.tensor([1.0, 0, 0])  # padding
    torch.testing.assert_close(right_share(logits, uneven()), torch.tensor([1.0, 5 / 6]))
