"""Episodes: what every one of them keeps to, and that number i is the same whoever asks how."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import EpisodeShape, Protocol, Rotation
from metabench.episodes.random import stream_key
from metabench.episodes.source import (
    EpisodeIndices,
    EpisodeSource,
    dirichlet_counts,
    protocol_key,
    training_key,
)
from metabench.errors import ProtocolError


def bank_of(sizes: Sequence[int], split: str = "test", digest: str = "0" * 32) -> ClassBank:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    names = tuple(f"class {c:02}" for c in range(len(sizes)))
    return ClassBank(np.arange(offsets[-1]), offsets, names, digest, split)


@st.composite
def sources(draw: st.DrawFn) -> EpisodeSource:
    """A source of any shape that its bank can serve, with classes of different sizes."""
    shots, queries = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    rotation = draw(st.sampled_from(Rotation))
    dirichlet = draw(st.none() | st.integers(1, 3))
    least = shots + queries * (4 if dirichlet else 1)
    sizes = draw(st.lists(st.integers(least, least + 6), min_size=2, max_size=9))
    bank = bank_of(sizes)
    if rotation is not Rotation.EPISODE and draw(st.booleans()):
        bank = bank.rotated()
    most = len(sizes) * (4 if rotation is Rotation.CLASSES else bank.views)
    ways = draw(st.integers(2, min(most, 4) if dirichlet else most))
    shape = EpisodeShape(
        ways=ways, shots=shots, queries=queries, rotation=rotation, dirichlet=dirichlet
    )
    return EpisodeSource(bank, shape, stream_key("any", draw(st.integers(0, 5))))


NUMBERS = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


@given(sources(), NUMBERS)
def test_every_episode_keeps_the_rules(source: EpisodeSource, numbers: list[int]) -> None:
    shape, bank = source.shape, source.bank
    drawn = source.draw(numbers)
    assert drawn.numbers.tolist() == numbers
    assert drawn.support_items.shape == (len(numbers), shape.ways * shape.shots)
    assert drawn.query_items.shape == (len(numbers), shape.ways * shape.queries)
    owner = np.repeat(np.arange(len(bank.names)), bank.class_sizes)
    for e in range(len(numbers)):
        classes = drawn.classes[e]
        assert len(set(classes.tolist())) == shape.ways
        assert ((classes >= 0) & (classes < bank.n_classes)).all()

        # Each class has its shots and its queries, and an item is used once.
        for labels, count in (
            (drawn.support_labels[e], shape.shots),
            (drawn.query_labels[e], shape.queries),
        ):
            if labels is drawn.support_labels[e] or shape.dirichlet is None:
                assert np.bincount(labels, minlength=shape.ways).tolist() == [count] * shape.ways
        turned = drawn.classes[e] if source.bank.views > 1 else np.zeros(shape.ways, dtype=int)
        items = np.concatenate([drawn.support_items[e], drawn.query_items[e]])
        labels = np.concatenate([drawn.support_labels[e], drawn.query_labels[e]])
        turns = np.concatenate([drawn.support_turns[e], drawn.query_turns[e]])
        assert len(set(zip(items.tolist(), labels.tolist(), strict=True))) == len(items)
        if len(set((classes // bank.views).tolist())) == shape.ways:
            assert len(set(items.tolist())) == len(items)

        # A label is the place of its class, and its items are of that class, turned as it is.
        assert np.array_equal(owner[items], (classes // bank.views)[labels])
        if shape.rotation is Rotation.EPISODE:
            assert ((turns >= 0) & (turns < 4)).all()
            assert len(set(zip(labels.tolist(), turns.tolist(), strict=True))) == shape.ways
        else:
            assert np.array_equal(turns, (turned % bank.views)[labels])


def same(first: EpisodeIndices, second: EpisodeIndices) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def row(drawn: EpisodeIndices, e: int) -> EpisodeIndices:
    return EpisodeIndices(*(field[e : e + 1] for field in drawn))


@given(sources(), NUMBERS, NUMBERS, st.randoms())
def test_an_episode_does_not_depend_on_how_it_was_asked_for(
    source: EpisodeSource, numbers: list[int], before: list[int], random: object
) -> None:
    fresh = EpisodeSource(source.bank, source.shape, source.key)
    alone = [fresh.draw([number]) for number in numbers]
    source.draw(before)
    shuffled = list(range(len(numbers)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    together = source.draw([numbers[e] for e in shuffled])
    for place, e in enumerate(shuffled):
        assert same(row(together, place), alone[e])


def test_a_thousand_are_a_prefix_of_ten_thousand() -> None:
    bank = bank_of([6] * 8)
    few, many = (Protocol(ways=3, shots=1, queries=2, episodes=n) for n in (1000, 10_000))
    assert protocol_key(bank, few) == protocol_key(bank, many)
    source = EpisodeSource(bank, many.shape, protocol_key(bank, many))
    everything = source.draw(range(10_000))
    prefix = EpisodeSource(bank, few.shape, protocol_key(bank, few)).draw(range(1000))
    assert same(prefix, EpisodeIndices(*(field[:1000] for field in everything)))


def test_episodes_differ() -> None:
    source = EpisodeSource(
        bank_of([6] * 8), EpisodeShape(ways=5, shots=1, queries=2), stream_key("any")
    )
    drawn = source.draw(range(200))
    rows = np.concatenate([drawn.support_items, drawn.query_items], axis=1)
    assert len(np.unique(rows, axis=0)) == 200


def test_keys_hang_on_data_split_protocol_seed_and_purpose_only() -> None:
    bank, protocol = bank_of([6] * 8), Protocol(ways=5, shots=1)
    keys = [
        protocol_key(bank, protocol),
        protocol_key(bank_of([6] * 8, digest="1" * 32), protocol),
        protocol_key(bank_of([6] * 8, split="train"), protocol),
        protocol_key(bank, protocol.model_copy(update={"episode_seed": 1})),
        protocol_key(bank, protocol.model_copy(update={"shots": 2})),
        training_key(bank, protocol.shape, 0, "episodic"),
        training_key(bank, protocol.shape, 1, "episodic"),
        training_key(bank, protocol.shape, 0, "collect"),
    ]
    assert len(set(keys)) == len(keys)
    assert protocol_key(bank.rotated(), protocol) == keys[0]


def independent(table: np.ndarray) -> float:
    """The p-value of a chi-square test of independence of a table's rows and columns."""
    return float(stats.chi2_contingency(table).pvalue)


def test_neither_place_nor_class_nor_item_tells_the_label() -> None:
    source = EpisodeSource(
        bank_of([5] * 10), EpisodeShape(ways=4, shots=1, queries=3), stream_key("leak")
    )
    drawn = source.draw(range(4000))
    place = np.zeros((12, 4))
    for q in range(12):
        place[q] = np.bincount(drawn.query_labels[:, q], minlength=4)
    assert independent(place) > 0.01  # position of a query and its label
    after = np.zeros((4, 4))
    np.add.at(after, (drawn.query_labels[:, :-1].ravel(), drawn.query_labels[:, 1:].ravel()), 1)
    runs = after / after.sum(axis=1, keepdims=True)
    # 2 of the 11 others have the same label and 3 each other one.
    np.testing.assert_allclose(runs, np.where(np.eye(4, dtype=bool), 2 / 11, 3 / 11), atol=0.02)
    of_class = np.zeros((10, 4))
    for label in range(4):
        of_class[:, label] = np.bincount(drawn.classes[:, label], minlength=10)
    assert independent(of_class) > 0.01  # class and label
    within = np.zeros((5, 2))
    within[:, 0] = np.bincount(drawn.support_items.ravel() % 5, minlength=5)
    within[:, 1] = np.bincount(drawn.query_items.ravel() % 5, minlength=5)
    assert independent(within) > 0.01  # place within the class, and support or query


def test_turns_of_an_episode_are_uniform() -> None:
    shape = EpisodeShape(ways=4, shots=1, queries=1, rotation=Rotation.EPISODE)
    drawn = EpisodeSource(bank_of([5] * 10), shape, stream_key("turns")).draw(range(2000))
    assert stats.chisquare(np.bincount(drawn.support_turns.ravel(), minlength=4)).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_proportions_of_queries_follow_the_dirichlet_law(alpha: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (20_000, 4 * alpha - 1), dtype=np.uint64)
    counts = dirichlet_counts(words, 4, 10_000)
    assert (counts.sum(1) == 10_000).all()
    assert (counts >= 0).all()
    shares = counts / 10_000
    np.testing.assert_allclose(shares.mean(0), 0.25, atol=0.005)
    # A share alone has a beta distribution, and two of them hang together as Dirichlet's do.
    law = stats.beta(alpha, 3 * alpha)
    assert all(stats.kstest(shares[:, c], law.cdf).pvalue > 0.001 for c in range(4))
    expected = -(0.25**2) / (4 * alpha + 1)
    covariance = np.cov(shares.T)[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(covariance, expected, rtol=0.1)


def test_proportions_are_rounded_to_the_largest_remainders() -> None:
    cuts = np.array([[0.5, 0.9]]) * 2.0**64  # shares .5, .4, .1 of 7: 3.5, 2.8, .7
    assert dirichlet_counts(cuts.astype(np.uint64), 3, 7).tolist() == [[3, 3, 1]]


def test_episodes_differ_in_their_proportions_and_labels_keep_their_secret() -> None:
    shape = EpisodeShape(ways=4, shots=1, queries=3, dirichlet=2)
    drawn = EpisodeSource(bank_of([13] * 10), shape, stream_key("proportions")).draw(range(4000))
    counts = np.stack([np.bincount(labels, minlength=4) for labels in drawn.query_labels])
    assert len(np.unique(counts, axis=0)) > 100
    place = np.stack([np.bincount(drawn.query_labels[:, q], minlength=4) for q in range(12)])
    assert independent(place) > 0.01


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"ways": 9, "shots": 1, "queries": 1}, ["9 ways", "8 classes", "test"]),
        ({"ways": 2, "shots": 3, "queries": 4}, ["3 shots + 4 queries = 7", "class 05", "test"]),
        ({"ways": 3, "shots": 1, "queries": 2, "dirichlet": 2}, ["1 shots + 6 queries = 7"]),
    ],
)
def test_what_the_data_cannot_serve_is_refused_before_anything_is_drawn(
    shape: dict[str, int], words: list[str]
) -> None:
    bank = bank_of([7, 7, 7, 7, 7, 6, 7, 7])
    with pytest.raises(ProtocolError) as caught:
        EpisodeSource(bank, EpisodeShape(**shape), b"\0" * 16)
    assert all(word in caught.value.message for word in words)


FROZEN = {
    Rotation.NONE: "c30ca3748525db15625dc9f443846199",
    Rotation.CLASSES: "133ae7ee42cfcd19b5a57a9af063ed4c",
    Rotation.EPISODE: "90a3082a8462c6d9a7ca07680b4fec58",
}


@pytest.mark.parametrize("rotation", FROZEN)
def test_the_first_episodes_never_change(rotation: Rotation) -> None:
    bank = bank_of([20, 25, 30, 20, 22, 21, 40])
    protocol = Protocol(ways=5, shots=2, queries=3, rotation=rotation)
    drawn = EpisodeSource(bank, protocol.shape, protocol_key(bank, protocol)).draw(range(3))
    state = hashlib.sha256()
    for field in drawn:
        state.update(np.ascontiguousarray(field, dtype="<i8").tobytes())
    assert state.hexdigest()[:32] == FROZEN[rotation]


def test_the_first_episode_in_proportions_in_full() -> None:
    bank = bank_of([20, 25, 30, 20, 22, 21, 40])
    protocol = Protocol(ways=3, shots=1, queries=2, dirichlet=2)
    drawn = EpisodeSource(bank, protocol.shape, protocol_key(bank, protocol)).draw([0])
    assert drawn.classes.tolist() == [[3, 6, 0]]
    assert drawn.support_items.tolist() == [[92, 172, 15]]
    assert drawn.query_items.tolist() == [[167, 170, 5, 7, 79, 4]]
    assert drawn.query_labels.tolist() == [[1, 1, 2, 2, 0, 2]]


def test_the_first_episode_in_full() -> None:
    bank = bank_of([20, 25, 30, 20, 22, 21, 40])
    protocol = Protocol(ways=3, shots=1, queries=2)
    drawn = EpisodeSource(bank, protocol.shape, protocol_key(bank, protocol)).draw([0])
    assert drawn.classes.tolist() == [[1, 2, 0]]
    assert drawn.support_items.tolist() == [[31, 57, 0]]
    assert drawn.query_items.tolist() == [[47, 13, 11, 21, 58, 30]]
    assert drawn.query_labels.tolist() == [[1, 2, 2, 0, 1, 0]]
