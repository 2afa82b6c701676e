"""Disjoint episodes: no item twice, as many as there can be, the same for everybody."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.episodes.bank import ClassBank
from metabench.episodes.disjoint import DisjointSource
from metabench.episodes.protocol import Protocol, Rotation


def bank_of(sizes: Sequence[int]) -> ClassBank:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    names = tuple(f"class {c:02}" for c in range(len(sizes)))
    return ClassBank(np.arange(offsets[-1]), offsets, names, "0" * 32, "test")


@st.composite
def sources(draw: st.DrawFn) -> DisjointSource:
    shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dirichlet = draw(st.none() | st.integers(1, 3))
    ways = draw(st.integers(2, 4))
    least = shots + queries * (ways if dirichlet else 1)
    sizes = draw(st.lists(st.integers(least, least + 40), min_size=ways, max_size=9))
    protocol = Protocol(
        ways=ways,
        shots=shots,
        queries=queries,
        rotation=draw(st.sampled_from(Rotation)),
        dirichlet=dirichlet,
        episodes=draw(st.sampled_from([2, 1000])),
    )
    return DisjointSource(bank_of(sizes), protocol)


@given(sources())
def test_no_item_stands_in_two_episodes(source: DisjointSource) -> None:
    assert 1 <= source.count <= 1000
    drawn = source.draw(range(source.count))
    items = np.concatenate([drawn.support_items, drawn.query_items], axis=1)
    assert len(np.unique(items)) == items.size


@given(sources())
def test_they_keep_the_rules_of_episodes(source: DisjointSource) -> None:
    shape, bank = source.shape, source.bank
    drawn = source.draw(range(source.count))
    owner = np.repeat(np.arange(len(bank.names)), bank.class_sizes)
    for e in range(source.count):
        classes = drawn.classes[e]
        assert len(set((classes // bank.views).tolist())) == shape.ways
        assert np.bincount(drawn.support_labels[e]).tolist() == [shape.shots] * shape.ways
        counts = np.bincount(drawn.query_labels[e], minlength=shape.ways)
        assert counts.sum() == shape.ways * shape.queries
        if shape.dirichlet is None:
            assert counts.tolist() == [shape.queries] * shape.ways
        for items, labels, turns in (
            (drawn.support_items[e], drawn.support_labels[e], drawn.support_turns[e]),
            (drawn.query_items[e], drawn.query_labels[e], drawn.query_turns[e]),
        ):
            assert np.array_equal(owner[items], (classes // bank.views)[labels])
            if shape.rotation is Rotation.CLASSES:
                assert np.array_equal(turns, (classes % bank.views)[labels])
            elif shape.rotation is Rotation.NONE:
                assert not turns.any()


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=10),
    st.integers(2, 5),
    st.integers(1, 5),
    st.integers(1, 15),
)
def test_they_are_as_many_as_the_data_allow(
    sizes: list[int], ways: int, shots: int, queries: int
) -> None:
    # A class serves in as many episodes as it has lots of items; T episodes of N classes can be
    # had exactly if the lots, of which no class gives more than T, come to N * T.
    sizes = [max(size, shots + queries) for size in sizes]
    if ways > len(sizes):
        return
    lots = np.array(sizes) // (shots + queries)
    most = max(t for t in range(sum(sizes)) if np.minimum(lots, t).sum() >= ways * t)
    protocol = Protocol(ways=ways, shots=shots, queries=queries, episodes=1_000_000)
    assert DisjointSource(bank_of(sizes), protocol).count == most


def test_they_are_the_same_whoever_asks_and_no_others_for_more_test_episodes() -> None:
    bank, protocol = bank_of([40] * 9), Protocol(ways=3, shots=1, queries=4, episodes=1000)
    source = DisjointSource(bank, protocol)
    again = DisjointSource(bank, protocol.model_copy(update={"episodes": 2000}))
    whole, backwards = source.draw(range(source.count)), again.draw([5, 2])
    assert all(np.array_equal(a[[5, 2]], b) for a, b in zip(whole, backwards, strict=True))
    other = DisjointSource(bank, protocol.model_copy(update={"episode_seed": 1}))
    assert not np.array_equal(other.draw([0]).query_items, source.draw([0]).query_items)


def test_labels_and_places_tell_nothing() -> None:
    # Classes of very different sizes: the largest is in every episode, under any label.
    protocol = Protocol(ways=4, shots=1, queries=2, episodes=1000)
    drawn = DisjointSource(bank_of([3000, 600, 600, 600, 600]), protocol).draw(range(240))
    assert (drawn.classes == 0).any(axis=1).all()
    label_of_largest = np.argmax(drawn.classes == 0, axis=1)
    assert (np.bincount(label_of_largest, minlength=4) > 40).all()
    assert (np.bincount(drawn.query_labels[:, 0], minlength=4) > 40).all()


def test_too_few_classes_give_none() -> None:
    bank = replace(bank_of([40, 40]), views=1)
    protocol = Protocol(ways=5, shots=1, queries=4, rotation=Rotation.CLASSES)
    source = DisjointSource(bank, protocol)
    assert source.count == 0
    assert source.draw([]).query_items.shape == (0, 20)
    with pytest.raises(IndexError):
        source.draw([0])
