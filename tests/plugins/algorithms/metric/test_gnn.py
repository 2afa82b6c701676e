"""The graph network against NumPy, node by node, and what it is and isn't equivariant to."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from metabench.api.items import Items, Support, Targets
from metabench.api.recipe import Recipe
from metabench.errors import UsageError
from metabench_plugins.algorithms.metric.gnn import GNN, Block, GNNHyperparameters

WAYS = 3
SMALL = GNNHyperparameters(embedding=6, width=4, blocks=2)


@pytest.fixture(scope="module")
def task(lab) -> tuple[GNN, Support, Items]:
    """A small network, nothing in it as it was initialised; embedded episodes of 3 ways."""
    lab = lab.double().with_protocol(ways=WAYS, shots=2, queries=2)
    algorithm = lab.make(GNN, SMALL)
    generator = torch.Generator().manual_seed(0)
    for name, value in algorithm.state_dict().items():
        if not name.startswith("backbone"):
            lowest = 0.5 if name.endswith("running_var") else -0.4
            value.copy_(torch.rand(value.shape, generator=generator) + lowest)
    algorithm.requires_grad_(False)
    support, queries, _, _ = lab.batch(2)
    known = support._replace(items=algorithm.embed_sets(support.items))
    return algorithm, known, algorithm.embed_sets(queries)


@pytest.fixture
def predicts(lab) -> Callable[[GNN, Support, Items], Tensor]:
    def logits(algorithm: GNN, support: Support, queries: Items) -> Tensor:
        ctx = lab.context()
        return algorithm.predict(algorithm.adapt(support, ctx), queries, ctx)

    return logits


def plain(layer: nn.Module, values: np.ndarray) -> np.ndarray:
    """A linear layer, or a batch norm by its running moments, of one vector."""
    own = {name: value.numpy() for name, value in layer.state_dict().items()}
    if "running_mean" in own:
        values = (values - own["running_mean"]) / np.sqrt(own["running_var"] + layer.eps)
        return values * own["weight"] + own["bias"]
    return own["weight"] @ values + own["bias"]


def leaky(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 0.01 * values)


def plain_block(block: Block, nodes: list[np.ndarray]) -> list[np.ndarray]:
    """(4) of each node."""
    made = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        scores = []
        for other in others:
            values = np.abs(node - other)
            for layer, norm in zip(block.kernel.layers, block.kernel.norms, strict=True):
                values = leaky(plain(norm, plain(layer, values)))
            scores.append(plain(block.kernel.last, values)[0])
        shares = softmax(scores)
        heard = sum(share * other for share, other in zip(shares, others, strict=True))
        mixed = plain(block.mix, np.concatenate([node, heard]))
        made.append(mixed if block.norm is None else plain(block.norm, mixed))
    return made


def test_logits_are_those_of_a_loop_over_nodes(task, predicts) -> None:
    algorithm, support, queries = task
    logits = predicts(algorithm, support, queries)
    assert logits.shape == (2, 6, WAYS)
    assert logits.std() > 0.01  # not a constant, which would be easily equal
    for b in range(2):
        labels = np.eye(WAYS)[support.targets.values[b]]
        known = [np.concatenate(pair) for pair in zip(support.items.data[b], labels, strict=True)]
        for q, query in enumerate(queries.data[b].numpy()):
            nodes = [np.concatenate([query, np.full(WAYS, 1 / WAYS)]), *known]
            for block in algorithm.blocks:
                made = [leaky(values) for values in plain_block(block, nodes)]
                nodes = [np.concatenate(pair) for pair in zip(nodes, made, strict=True)]
            expected = plain_block(algorithm.last, nodes)[0]
            np.testing.assert_allclose(logits[b, q], expected, rtol=1e-9, atol=1e-12)


def test_a_query_has_a_graph_of_its_own(task, predicts) -> None:
    algorithm, support, queries = task
    together = predicts(algorithm, support, queries)
    for q in range(6):
        alone = predicts(algorithm, support, Items(queries.data[:, q : q + 1]))
        torch.testing.assert_close(alone[:, 0], together[:, q], rtol=1e-12, atol=1e-12)


def test_the_order_of_the_support_set_changes_nothing(lab, task, predicts) -> None:
    algorithm, support, queries = task
    turned = predicts(algorithm, lab.shuffle_support(support), queries)
    torch.testing.assert_close(
        turned, predicts(algorithm, support, queries), rtol=1e-12, atol=1e-12
    )


def test_labels_are_inputs(lab, task, predicts) -> None:
    """Other names change predictions, unless the weights of the names move with them."""
    algorithm, support, queries = task
    logits, renamed = predicts(algorithm, support, queries), lab.relabel(support)
    found = predicts(algorithm, renamed, queries)
    assert not torch.allclose(found, logits.roll(1, -1))

    moved = lab.with_protocol(ways=WAYS, shots=2).double().make(GNN, SMALL)
    moved.load_state_dict(algorithm.state_dict())
    moved.requires_grad_(False)
    of_labels = slice(SMALL.embedding, SMALL.embedding + WAYS)
    for block in [*moved.blocks, moved.last]:
        first, mix = block.kernel.layers[0].weight, block.mix.weight
        first[:, of_labels] = first[:, of_labels].roll(1, 1)
        for half in mix.chunk(2, dim=1):  # of the node itself, and of its neighbours
            half[:, of_labels] = half[:, of_labels].roll(1, 1)
    for tensor in (moved.last.mix.weight, moved.last.mix.bias):
        tensor.copy_(tensor.roll(1, 0))
    torch.testing.assert_close(predicts(moved, renamed, queries), logits.roll(1, -1))


def test_nobody_listens_to_padding(task, predicts) -> None:
    algorithm, support, queries = task
    there = torch.tensor([True, True, False, True, True, False])
    data, labels = support.items.data, support.targets.values
    short = Support(Items(data[:, there]), Targets(labels[:, there]), WAYS)
    padded = Support(Items(data, there.expand(2, 6)), support.targets, WAYS)
    found = predicts(algorithm, padded, queries)
    torch.testing.assert_close(found, predicts(algorithm, short, queries))
    assert not torch.allclose(found, predicts(algorithm, support, queries))


def test_every_kernel_and_block_learns(lab) -> None:
    lab = lab.double().with_protocol(shots=2)
    algorithm = lab.make(GNN, SMALL).train()
    algorithm.training_loss(lab.batch(2), lab.context("train")).backward()
    for name, parameter in algorithm.named_parameters():
        if name.endswith("weight"):
            assert float(parameter.grad.abs().max()) > 1e-9, name


def test_ways_are_those_of_training(lab) -> None:
    with pytest.raises(UsageError, match="cannot train with 10 ways and be tested with 5"):
        lab.make(GNN, recipe=Recipe(ways=10))
