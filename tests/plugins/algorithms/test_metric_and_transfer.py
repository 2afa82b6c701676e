"""What holds for every metric learner and transfer learner: padding, batches, order, seeds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.items import Items, Support, Targets
from metabench.api.recipe import Hyperparameters, Recipe
from metabench_plugins.algorithms.metric.matching_networks import (
    MatchingNetworks,
    MatchingNetworksHyperparameters,
)
from metabench_plugins.algorithms.metric.nearest_centroid import (
    NearestCentroid,
    NearestCentroidHyperparameters,
)
from metabench_plugins.algorithms.metric.protonet import ProtoNet, ProtoNetHyperparameters
from metabench_plugins.algorithms.metric.relation_network import (
    RelationNetwork,
    RelationNetworkHyperparameters,
)
from metabench_plugins.algorithms.transfer.baseline import Baseline, BaselineHyperparameters

VARIANTS: dict[str, tuple[type[Algorithm], Hyperparameters]] = {
    "protonet": (ProtoNet, ProtoNetHyperparameters()),
    "protonet cosine": (ProtoNet, ProtoNetHyperparameters(distance="cosine", temperature=0.1)),
    "matching": (MatchingNetworks, MatchingNetworksHyperparameters()),
    "matching euclidean": (
        MatchingNetworks,
        MatchingNetworksHyperparameters(distance="squared-euclidean"),
    ),
    "relation": (RelationNetwork, RelationNetworkHyperparameters()),
    "relation squared error": (
        RelationNetwork,
        RelationNetworkHyperparameters(loss="squared-error"),
    ),
    "baseline": (Baseline, BaselineHyperparameters()),
    "centroid un": (NearestCentroid, NearestCentroidHyperparameters(normalisation="un")),
    "centroid l2n": (NearestCentroid, NearestCentroidHyperparameters(normalisation="l2n")),
    "centroid cl2n": (NearestCentroid, NearestCentroidHyperparameters(normalisation="cl2n")),
}
A_FEW_STEPS = Recipe(steps=4, ways=8, queries=3, batch_size=32)

every = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def trained(lab) -> Callable[[str], Algorithm]:
    """A variant after a few steps, then in float64: nothing is as it was initialised."""
    made: dict[str, Algorithm] = {}

    def get(variant: str) -> Algorithm:
        if variant not in made:
            kind, hp = VARIANTS[variant]
            algorithm = lab.make(kind, hp, recipe=A_FEW_STEPS)
            with torch.enable_grad():  # whichever test asks first
                lab.train(algorithm, A_FEW_STEPS)
            made[variant] = algorithm.double()
        return made[variant]

    return get


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@every
def test_it_is_inductive_as_declared(lab, trained, variant: str) -> None:
    algorithm = trained(variant)
    assert algorithm.inference_mode(algorithm.hp) == "inductive"
    for shots in (1, 3):
        assert lab.double().with_protocol(shots=shots).dependence(algorithm, 3) == ""


@every
@torch.no_grad()
def test_episodes_at_once_equal_one_at_a_time(lab, trained, variant: str) -> None:
    lab = lab.double().with_protocol(shots=2)
    support, queries, _, _ = lab.batch(4)
    together = lab.logits(trained(variant), support, queries)
    assert together.shape == (4, 25, 5)
    for b in range(4):
        one = Support(
            Items(support.items.data[b : b + 1]), Targets(support.targets.values[b : b + 1]), 5
        )
        close(
            together[b : b + 1], lab.logits(trained(variant), one, Items(queries.data[b : b + 1]))
        )


@every
@pytest.mark.parametrize("masked", ["items", "targets", "both"])
@torch.no_grad()
def test_padding_changes_nothing(lab, trained, variant: str, masked: str) -> None:
    """Classes of 1, 2 and 3 shots; the missing items stand there as noise with a wrong label."""
    lab = lab.double().with_protocol(shots=3)
    support, queries, _, _ = lab.batch(3)
    there = torch.ones(15, dtype=torch.bool)
    there[[1, 2, 5, 14]] = False
    data, labels = support.items.data, support.targets.values
    short = Support(Items(data[:, there]), Targets(labels[:, there]), 5)

    mask = there.expand(3, 15)
    noise = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=data.dtype)
    garbled = torch.where(there.view(1, 15, 1, 1, 1), data, noise)
    mislabelled = torch.where(there, labels, (labels + 2) % 5)
    padded = Support(
        Items(garbled, mask if masked != "targets" else None),
        Targets(mislabelled, mask if masked != "items" else None),
        5,
    )
    expected = lab.logits(trained(variant), short, queries)
    close(lab.logits(trained(variant), padded, queries), expected)
    unmasked = Support(Items(garbled), Targets(mislabelled), 5)
    assert not torch.allclose(lab.logits(trained(variant), unmasked, queries), expected)


@every
@torch.no_grad()
def test_declared_equivariances_hold(lab, trained, variant: str) -> None:
    algorithm, lab = trained(variant), lab.double().with_protocol(shots=3)
    support, queries, _, _ = lab.batch(3)
    logits = lab.logits(algorithm, support, queries)
    assert algorithm.equivariant_to == {"support-order", "class-labels"}
    close(lab.logits(algorithm, lab.shuffle_support(support), queries), logits)
    close(lab.logits(algorithm, lab.relabel(support), queries), logits.roll(1, dims=-1))


@every
@pytest.mark.parametrize("ways", [2, 7])
def test_any_number_of_ways_will_do_at_test(lab, trained, variant: str, ways: int) -> None:
    lab = lab.double().with_protocol(ways=ways)
    support, queries, _, _ = lab.batch(2)
    with torch.no_grad():
        logits = lab.logits(trained(variant), support, queries)
        of_support = lab.logits(trained(variant), support, support.items)
    assert logits.shape == (2, 5 * ways, ways)
    assert logits.isfinite().all()
    if not variant.startswith(("relation", "baseline")):  # nothing is nearer than itself
        assert torch.equal(of_support.argmax(-1), support.targets.values)


@every
def test_training_follows_the_seed_alone(lab, variant: str) -> None:
    kind, hp = VARIANTS[variant]
    states = []
    for seed in (1, 1, 2):
        algorithm = lab.make(kind, hp, recipe=A_FEW_STEPS, seed=seed)
        torch.rand(seed)  # the global generator stands somewhere else: it must not matter
        lab.train(algorithm, A_FEW_STEPS, seed)
        states.append(algorithm.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@every
def test_the_state_of_one_episode_can_be_cut_out(lab, trained, variant: str) -> None:
    """Each tensor of a state has the episodes as its first dimension, and is all there is to it."""
    algorithm, lab = trained(variant), lab.double()
    support, queries, _, _ = lab.batch(3)
    with torch.no_grad():
        embedded = support._replace(items=algorithm.embed_sets(support.items))
        asked = algorithm.embed_sets(queries)
        state = algorithm.adapt(embedded, lab.context(episodes=3))
        logits = algorithm.predict(state, asked, lab.context(episodes=3))
        assert all(value.shape[0] == 3 for value in state.values())
        last = {name: value[2:] for name, value in state.items()}
        close(algorithm.predict(last, Items(asked.data[2:]), lab.context()), logits[2:])


LEARNS = {
    "protonet": Recipe(steps=200, ways=20, queries=5, lr=5e-3),
    "matching": Recipe(steps=200, ways=20, queries=5),
    "relation": Recipe(steps=200, ways=10, queries=10, lr=3e-3, schedule="cosine"),
    "relation squared error": Recipe(steps=200, ways=10, queries=10, lr=3e-3, schedule="cosine"),
    "baseline": Recipe(steps=400, batch_size=64),
    "centroid cl2n": Recipe(steps=400, batch_size=64),
}


@pytest.mark.parametrize("variant", LEARNS)
def test_training_helps(real_lab, variant: str) -> None:
    """A trained one beats its untrained self on the same test episodes, paired, p < .01."""
    lab, recipe = real_lab.with_protocol(queries=15), LEARNS[variant]
    kind, hp = VARIANTS[variant]
    untrained = lab.make(kind, hp, recipe=recipe)
    algorithm = lab.make(kind, hp, recipe=recipe)
    lab.train(algorithm, recipe)
    mean, t = lab.gain(untrained, algorithm, episodes=200)
    assert mean > 0.02
    assert t > 2.6, f"gained {mean:.3f}, t = {t:.1f}"
