"""Matching networks against the paper's attention as loops, and at extreme similarities."""

import math

import pytest
import torch
import torch.nn.functional as F

from metabench_plugins.algorithms.metric.matching_networks import (
    MatchingNetworks,
    MatchingNetworksHyperparameters,
    log_class_attention,
)


@pytest.mark.parametrize(("distance", "scale"), [("cosine", 10), ("squared-euclidean", 1)])
@pytest.mark.parametrize("stated", [True, False])
@torch.no_grad()
def test_probabilities_are_the_attention_of_equation_1(
    lab, distance: str, scale: float, stated: bool
) -> None:
    lab = lab.double().with_protocol(shots=3)
    hp = MatchingNetworksHyperparameters(distance=distance, scale=scale if stated else None)
    algorithm = lab.make(MatchingNetworks, hp)
    support, queries, _, _ = lab.batch(2)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        known = algorithm.backbone(support.items.data[b])
        for q, asked in enumerate(algorithm.backbone(queries.data[b])):
            weights = []
            for item in known:
                if distance == "cosine":
                    alike = float(asked @ item) / float(asked.norm() * item.norm())
                else:
                    alike = -float(((asked - item) ** 2).sum())
                weights.append(math.exp(scale * alike))
            for n in range(5):
                own = [
                    w
                    for w, label in zip(weights, support.targets.values[b], strict=True)
                    if label == n
                ]
                assert float(logits[b, q, n].exp()) == pytest.approx(sum(own) / sum(weights))


def test_they_are_log_probabilities(lab) -> None:
    lab = lab.double()
    support, queries, _, _ = lab.batch(2)
    with torch.no_grad():
        logits = lab.logits(lab.make(MatchingNetworks), support, queries)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 25, dtype=torch.float64))


def test_extreme_similarities_stay_finite() -> None:
    similarities = torch.tensor([[[0.0, -1e4, -1e5, -3e4], [1e5, 1e5 - 1, -1e5, 0.0]]])
    member = torch.eye(3).bool()[[0, 1, 2, 1]].unsqueeze(0)  # (1, 4, 3)
    logits = log_class_attention(similarities, member)
    expected = torch.tensor([[[0.0, -1e4, -1e5], [1e5, 1e5 - 1, -1e5]]]).log_softmax(-1)
    torch.testing.assert_close(logits, expected)
    # Padding may be as alike as it pleases.
    similarities[..., 3] = 1e6
    member[:, 3] = False
    torch.testing.assert_close(log_class_attention(similarities, member), expected)


def test_values_and_gradients_are_those_of_the_plain_formula_with_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    similarities = torch.randn(2, 6, 9, dtype=torch.float64, generator=generator)
    similarities.requires_grad_()
    labels = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 1, 1], [2, 2, 2, 1, 0, 0, 0, 1, 2]])
    real = torch.tensor([[True] * 7 + [False] * 2, [True] * 8 + [False]])
    member = F.one_hot(labels, 3).bool() & real.unsqueeze(-1)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(logits.numel(), dtype=torch.float64).view_as(logits)
        (found,) = torch.autograd.grad((logits * weights).sum(), similarities)
        return found

    attention = similarities.exp() * real.unsqueeze(1)
    attention = attention / attention.sum(-1, keepdim=True)
    plain = (attention @ member.double()).log()
    actual = log_class_attention(similarities, member)
    torch.testing.assert_close(actual, plain)
    torch.testing.assert_close(gradient(actual), gradient(plain))
