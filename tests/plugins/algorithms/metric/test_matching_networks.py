"""Matching networks against the paper's attention as loops, and at extreme similarities.

Full-context embeddings: against NumPy, item by item, and what the order of the support set does.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, softmax

from metabench.api.items import Items, Support
from metabench.plugins import load_registry
from metabench.testing.conformance.algorithms import CHECKS
from metabench.testing.conformance.finding import NonconformityError, NotApplicableError
from metabench.testing.conformance.subject import AlgorithmSubject
from metabench_plugins.algorithms.metric.matching_networks import (
    FullContext,
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


# Full-context embeddings.


def lstm_step(
    layer: torch.nn.Module, inputs: np.ndarray, hidden: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step on one item; the gates are PyTorch's: input, forget, new, output."""
    own = {name.removesuffix("_l0"): value.numpy() for name, value in layer.state_dict().items()}
    gates = own["weight_ih"] @ inputs + own["bias_ih"] + own["weight_hh"] @ hidden + own["bias_hh"]
    taken, kept, new, shown = np.split(gates, 4)
    cell = expit(kept) * cell + expit(taken) * np.tanh(new)
    return expit(shown) * np.tanh(cell), cell


def plain_support(context: FullContext, items: np.ndarray) -> np.ndarray:
    """(S, D): g of appendix A.2."""
    found = items.copy()
    for layer, order in ((context.forwards, 1), (context.backwards, -1)):
        hidden = cell = np.zeros(items.shape[1])
        for i in range(len(items))[::order]:
            hidden, cell = lstm_step(layer, items[i], hidden, cell)
            found[i] += hidden
    return found


def plain_query(context: FullContext, query: np.ndarray, support: np.ndarray) -> np.ndarray:
    """(D,): the attention LSTM of appendix A.1, (3) to (6)."""
    hidden, cell = query, np.zeros_like(query)
    for _ in range(context.steps):
        read = softmax(support @ hidden) @ support
        after, cell = lstm_step(context.reader, np.concatenate([query, read]), hidden, cell)
        hidden = after + query
    return hidden


@pytest.mark.parametrize("distance", ["cosine", "squared-euclidean"])
@torch.no_grad()
def test_full_context_is_that_of_appendix_a(lab, distance: str) -> None:
    lab = lab.double().with_protocol(shots=2)
    hp = MatchingNetworksHyperparameters(
        distance=distance, scale=2.0, full_context=True, processing_steps=3
    )
    algorithm = lab.make(MatchingNetworks, hp)
    support, queries, _, _ = lab.batch(2)
    known, asked = algorithm.embed_sets(support.items), algorithm.embed_sets(queries)
    logits = lab.logits(algorithm, support, queries)
    for b in range(2):
        contextual = plain_support(algorithm.context, known.data[b].numpy())
        for q in range(0, 25, 6):
            query = plain_query(algorithm.context, asked.data[b, q].numpy(), contextual)
            if distance == "cosine":
                lengths = np.linalg.norm(contextual, axis=1) * np.linalg.norm(query)
                alike = contextual @ query / lengths
            else:
                alike = -((contextual - query) ** 2).sum(axis=1)
            attention = softmax(2 * alike)
            labels = support.targets.values[b].numpy()
            expected = [attention[labels == n].sum() for n in range(5)]
            np.testing.assert_allclose(logits[b, q].exp(), expected, rtol=1e-9)


@torch.no_grad()
def test_full_context_steps_over_padding(lab) -> None:
    """At the beginning, in the middle, at the end; other places in each episode."""
    lab = lab.double().with_protocol(shots=3)
    algorithm = lab.make(MatchingNetworks, MatchingNetworksHyperparameters(full_context=True))
    support, queries, _, _ = lab.batch(2)
    padding = torch.tensor([[0, 7, 14], [3, 4, 11]])
    there = torch.ones(2, 15, dtype=torch.bool).scatter(1, padding, False)
    data, labels = support.items.data.clone(), support.targets.values
    data[~there] = 0.5
    padded = lab.logits(algorithm, Support(Items(data, there), support.targets, 5), queries)
    for b in range(2):
        short = Support(
            Items(data[b : b + 1, there[b]]),
            support.targets._replace(values=labels[b : b + 1, there[b]]),
            5,
        )
        alone = lab.logits(algorithm, short, Items(queries.data[b : b + 1]))
        torch.testing.assert_close(padded[b : b + 1], alone)


def subject(cls: type[MatchingNetworks] = MatchingNetworks) -> AlgorithmSubject:
    entry = load_registry(strict=True).get("algorithm", "matching-networks")
    hp = MatchingNetworksHyperparameters(full_context=True, processing_steps=2)
    return AlgorithmSubject(entry, cls, hp=hp)


@pytest.mark.parametrize("check", [check.name for check in CHECKS.all])
def test_full_context_conforms(check: str) -> None:
    """The checks that `metabench check` makes without it."""
    [planned] = [found for found in CHECKS.all if found.name == check]
    try:
        planned.run(subject())
    except NotApplicableError:
        assert check in {"cuda", "support-order", "choices"}


def test_full_context_hangs_on_the_order_and_says_so() -> None:
    plain, full = (MatchingNetworksHyperparameters(full_context=full) for full in (False, True))
    assert MatchingNetworks.equivariances(plain) == {"support-order", "class-labels"}
    assert MatchingNetworks.equivariances(full) == {"class-labels"}

    class Silent(MatchingNetworks):
        """The same, and doesn't say so."""

        @classmethod
        def equivariances(cls, hp):
            return cls.equivariant_to

    [order] = [check for check in CHECKS.all if check.name == "support-order"]
    with pytest.raises(NonconformityError, match="in another order"):
        order.run(subject(Silent))
