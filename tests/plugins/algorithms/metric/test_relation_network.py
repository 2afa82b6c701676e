"""Relation networks against a loop over pairs of query and class."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabench.api.items import Targets
from metabench.errors import UsageError
from metabench_plugins.algorithms.metric import relation_network
from metabench_plugins.algorithms.metric.relation_network import (
    RelationModule,
    RelationNetwork,
    RelationNetworkHyperparameters,
    squared_error,
)
from metabench_plugins.backbones.conv4 import Conv4, Conv4Hyperparameters
from metabench_plugins.backbones.identity import Identity
from metabench_plugins.backbones.mlp import MLP


def plain_value(relation: RelationModule, pairs: Tensor) -> Tensor:
    """The paper's module on concatenated maps (n, 2C, H, W): (n,)."""
    maps = pairs
    for convolution, norm in (
        (relation.first, relation.first_norm),
        (relation.second, relation.second_norm),
    ):
        maps = F.relu(norm(convolution(maps)))
        if min(maps.shape[-2:]) >= 2:
            maps = F.max_pool2d(maps, 2)
    return relation.value(F.relu(relation.hidden(maps.flatten(1))))[:, 0]


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
@torch.no_grad()
def test_scores_equal_those_of_a_loop_over_pairs(lab, loss: str) -> None:
    lab = lab.double().with_protocol(shots=3)
    algorithm = lab.make(RelationNetwork, RelationNetworkHyperparameters(loss=loss))
    support, queries, _, _ = lab.batch(2)
    scores = lab.logits(algorithm, support, queries)
    for b in range(2):
        maps = algorithm.backbone.forward_map(support.items.data[b])
        asked = algorithm.backbone.forward_map(queries.data[b])
        for n in range(5):
            of_class = sum(maps[i] for i in range(15) if support.targets.values[b, i] == n)
            for q in range(len(asked)):
                pair = torch.cat([of_class, asked[q]])  # (2C, H, W)
                value = plain_value(algorithm.relation, pair[None])[0]
                expected = value.sigmoid() if loss == "squared-error" else value
                assert float(scores[b, q, n]) == pytest.approx(float(expected), rel=1e-9)
    if loss == "squared-error":
        assert 0 <= scores.min() < scores.max() <= 1


@pytest.mark.parametrize("size", [(6, 1, 1), (6, 2, 2), (6, 3, 3), (6, 5, 5), (4, 2, 7)])
@pytest.mark.parametrize("training", [True, False])
def test_every_size_of_map_will_do(
    size: tuple[int, int, int], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pairs pass at once; in training always all: batch norm takes their moments."""
    monkeypatch.setattr(relation_network, "NUMBERS_AT_ONCE", 100)
    torch.manual_seed(0)
    relation = RelationModule(size, width=5, hidden=3).double().train(training)
    classes, queries = torch.rand(2, 3, *size).double(), torch.rand(2, 4, *size).double()
    values = relation(classes, queries)
    pairs = torch.cat(
        [
            classes[:, None].expand(2, 4, 3, *size).flatten(0, 2),
            queries[:, :, None].expand(2, 4, 3, *size).flatten(0, 2),
        ],
        dim=1,
    )
    torch.testing.assert_close(values, plain_value(relation, pairs).view(2, 4, 3))


@torch.no_grad()
def test_how_many_pairs_pass_at_once_changes_nothing(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab.double()
    algorithm = lab.make(RelationNetwork)
    support, queries, _, _ = lab.batch(2)
    expected = lab.logits(algorithm, support, queries)
    passed: list[int] = []
    algorithm.relation.hidden.register_forward_hook(lambda _, __, made: passed.append(len(made)))
    for numbers in (1, 20_000):  # fewer than one query's, and several queries' with a rest
        monkeypatch.setattr(relation_network, "NUMBERS_AT_ONCE", numbers)
        torch.testing.assert_close(lab.logits(algorithm, support, queries), expected)


@torch.no_grad()
def test_squared_error_is_that_of_equation_2() -> None:
    scores = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    errors = [
        [
            sum((float(scores[b, q, n]) - int(n == targets[b, q])) ** 2 for n in range(3)) / 3
            for q in range(4)
        ]
        for b in range(2)
    ]
    assert float(squared_error(scores, Targets(targets))) == pytest.approx(
        sum(map(sum, errors)) / 8
    )
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    kept = [*errors[0][:3], errors[1][0]]
    assert float(squared_error(scores, Targets(targets, mask))) == pytest.approx(sum(kept) / 4)


@pytest.mark.parametrize("backbone", [MLP, Identity])
def test_a_backbone_without_maps_is_refused(lab, backbone) -> None:
    with pytest.raises(UsageError, match=f"backbone {backbone.name} has none"):
        lab.make(RelationNetwork, backbone=backbone)


def test_the_map_of_max_pooling_will_do(lab) -> None:
    """1 x 1, where the relation module cannot pool at all."""
    hp = Conv4Hyperparameters(width=8)
    algorithm = lab.make(RelationNetwork, backbone=Conv4, backbone_hp=hp)
    assert algorithm.backbone.feature_map == (8, 1, 1)
    assert lab.accuracies(algorithm, 5).shape == (5,)
