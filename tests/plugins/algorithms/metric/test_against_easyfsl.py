"""The metric learners against `easyfsl.methods`: the same embeddings, the same weights.

easyfsl departs from the papers here and there; then the test says where, and turns its scores into
those of the paper's formula.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabench_plugins.algorithms.metric.feat import FEAT, FEATHyperparameters
from metabench_plugins.algorithms.metric.matching_networks import (
    MatchingNetworks,
    MatchingNetworksHyperparameters,
)
from metabench_plugins.algorithms.metric.nearest_centroid import NearestCentroid
from metabench_plugins.algorithms.metric.protonet import ProtoNet, ProtoNetHyperparameters
from metabench_plugins.algorithms.metric.relation_network import (
    RelationNetwork,
    RelationNetworkHyperparameters,
)

WAYS, SHOTS = 5, 3


@pytest.fixture(params=[1, SHOTS], ids=["1 shot", "3 shots"])
def shots(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def made(lab, shots: int):
    """`made(kind, hp)`: an algorithm, an embedded episode, and the algorithm's logits (Q, N)."""
    here = lab.double().with_protocol(ways=WAYS, shots=shots, queries=8)

    def make(kind, hp=None, prepare=lambda algorithm: None):
        algorithm = here.make(kind, hp)
        algorithm.requires_grad_(False)
        prepare(algorithm)
        support, queries, _, _ = here.batch(1)
        known, asked = algorithm.embed_sets(support.items), algorithm.embed_sets(queries)
        ctx = here.context(episodes=1)
        state = algorithm.adapt(support._replace(items=known), ctx)
        logits = algorithm.predict(state, asked, ctx)[0]
        return algorithm, known.data[0], support.targets.values[0], asked.data[0], logits

    return make


def same_class(logits: Tensor, scores: Tensor) -> None:
    assert torch.equal(logits.argmax(-1), scores.argmax(-1))


def test_protonet(made, easyfsl_predicts) -> None:
    """easyfsl's distances are not squared, so its logits are not those of equation (2)."""
    _, *task, logits = made(ProtoNet)
    scores = easyfsl_predicts("PrototypicalNetworks", *task)
    same_class(logits, scores)
    torch.testing.assert_close(logits, -scores.square())


def test_protonet_by_cosine(made, easyfsl_predicts) -> None:
    _, *task, logits = made(ProtoNet, ProtoNetHyperparameters(distance="cosine"))
    torch.testing.assert_close(1 + logits, easyfsl_predicts("SimpleShot", *task))


def test_simple_shot(made, easyfsl_predicts, shots: int) -> None:
    """easyfsl takes cosines, also where the paper takes distances to class means.

    These are shorter than 1 with more than one shot, so that the class may differ. By their lengths
    distances follow from the cosines.
    """
    generator = torch.Generator().manual_seed(0)

    def prepare(algorithm: NearestCentroid) -> None:
        noise = torch.rand(algorithm.centre.shape, generator=generator)
        algorithm.centre.copy_(0.1 * noise)

    algorithm, support, labels, queries, logits = made(NearestCentroid, prepare=prepare)
    cosines = easyfsl_predicts(
        "SimpleShot",
        support,
        labels,
        queries,
        feature_centering=algorithm.centre,
        feature_normalization=2,
    )
    unit = F.normalize(support - algorithm.centre, dim=-1)
    lengths = torch.stack([unit[labels == n].mean(0).norm() for n in range(WAYS)])
    torch.testing.assert_close(logits, 2 * lengths * cosines - 1 - lengths.square())
    if shots == 1:
        same_class(logits, cosines)


class Pairs(nn.Module):
    """Our relation module as easyfsl calls it: (n, 2C, H, W) pairs to (n, 1) scores."""

    def __init__(self, algorithm: RelationNetwork) -> None:
        super().__init__()
        self.inner = algorithm.relation

    def forward(self, pairs: Tensor) -> Tensor:
        inner = self.inner
        maps = pairs
        for convolution, norm in (
            (inner.first, inner.first_norm),
            (inner.second, inner.second_norm),
        ):
            maps = F.relu(norm(convolution(maps)))
            maps = F.max_pool2d(maps, 2) if min(maps.shape[-2:]) >= 2 else maps
        scores: Tensor = inner.value(F.relu(inner.hidden(maps.flatten(1)))).sigmoid()
        return scores


def test_relation_network(made, easyfsl_predicts) -> None:
    """easyfsl takes the mean of a class's maps, the paper their sum: it is given sums."""
    hp = RelationNetworkHyperparameters(loss="squared-error")
    algorithm, support, labels, queries, scores = made(RelationNetwork, hp)
    sums = torch.stack([support[labels == n].sum(0) for n in range(WAYS)])
    expected = easyfsl_predicts(
        "RelationNetworks",
        sums,
        torch.arange(WAYS),
        queries,
        feature_dimension=support.shape[1],
        relation_module=Pairs(algorithm),
    )
    same_class(scores, expected)
    torch.testing.assert_close(scores, expected)


class NoContext(nn.Module):
    """In place of both of easyfsl's encoders, which it has always: states of zero, end to end."""

    def forward(self, inputs: Tensor, states: tuple[Tensor, Tensor] | None = None):
        if states is None:
            return inputs.new_zeros(*inputs.shape[:2], 2 * inputs.shape[2]), None
        return torch.zeros_like(states[0]), states[1]


def encoders(algorithm: MatchingNetworks) -> dict[str, nn.Module]:
    """Our LSTMs' weights in the modules that easyfsl takes."""
    context, size = algorithm.context, algorithm.backbone.feature_dim
    both = nn.LSTM(size, size, batch_first=True, bidirectional=True).double()
    own = context.forwards.state_dict()
    own |= {f"{name}_reverse": v for name, v in context.backwards.state_dict().items()}
    both.load_state_dict(own)
    return {"support_encoder": both, "query_encoder": context.reader}


@pytest.mark.parametrize("full", [False, True])
def test_matching_networks(made, easyfsl_predicts, shots: int, full: bool) -> None:
    """easyfsl leaves queries as long as they are, so its softmax is another one than ours.

    With one shot a class, the class is the same. With more, queries are given to it at the length
    of our scale; full-context embeddings come out at a length of their own, so that there the
    embeddings are compared, below. easyfsl takes K from the size of the support set, computes in
    float32 only, and adds 1e-6 to probabilities.
    """
    hp = MatchingNetworksHyperparameters(
        scale=4.0, full_context=full, processing_steps=WAYS * shots
    )
    algorithm, support, labels, queries, logits = made(MatchingNetworks, hp)
    none = NoContext()
    modules = encoders(algorithm) if full else {"support_encoder": none, "query_encoder": none}
    task = {"feature_dimension": support.shape[1], **{k: m.float() for k, m in modules.items()}}

    def scores(queries: Tensor) -> Tensor:
        single = support.float(), labels, queries.float()
        return easyfsl_predicts("MatchingNetworks", *single, **task)

    if shots == 1:
        same_class(logits, scores(queries))
    if not full:
        found = scores(4 * F.normalize(queries, dim=-1))
        same_class(logits, found)
        torch.testing.assert_close(logits.exp().float(), found.exp() - 1e-6, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_full_context_embeddings(made) -> None:
    methods = pytest.importorskip("easyfsl.methods")
    hp = MatchingNetworksHyperparameters(full_context=True, processing_steps=7)
    algorithm, support, labels, queries, _ = made(MatchingNetworks, hp)
    support, labels = torch.cat([support] * 7)[:7], torch.cat([labels] * 7)[:7]
    theirs = methods.MatchingNetworks(
        nn.Identity(), feature_dimension=support.shape[1], **encoders(algorithm)
    )
    theirs.process_support_set(support, labels)
    real = torch.ones(1, 7, dtype=torch.bool)
    ours = algorithm.context.support(support[None], real)
    torch.testing.assert_close(ours[0], theirs.contextualized_support_features)
    asked = algorithm.context.queries(queries[None], ours, real)
    torch.testing.assert_close(asked[0], theirs.encode_query_features(queries))


def test_feat(made, easyfsl_predicts) -> None:
    """With the authors' attention module; as for protonet, easyfsl's distances aren't squared."""
    modules = pytest.importorskip("easyfsl.modules")
    generator = torch.Generator().manual_seed(0)

    def prepare(algorithm: FEAT) -> None:
        for parameter in algorithm.attention.parameters():  # nothing is as it was initialised
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[0] ** 0.5)

    hp = FEATHyperparameters(temperature=16.0)
    algorithm, support, labels, queries, logits = made(FEAT, hp, prepare)
    size, own = algorithm.backbone.feature_dim, algorithm.attention.state_dict()
    theirs = modules.MultiHeadAttention(1, size, size, size).double()
    names = {"query": "w_qs", "key": "w_ks", "value": "w_vs", "out": "fc", "norm": "layer_norm"}
    theirs.load_state_dict(
        {f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": v for name, v in own.items()}
    )
    scores = easyfsl_predicts("FEAT", support, labels, queries, attention_module=theirs)
    same_class(logits, scores)
    torch.testing.assert_close(logits, -scores.square() / 16)
