"""Random numbers from Philox's raw words: NumPy's own, exact, uniform, and frozen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metabench.episodes.random import (
    Stream,
    below,
    normal,
    sample_without_replacement,
    stream_key,
    uniform,
)

KEY = stream_key("test", 0)
WORD = st.integers(0, 2**64 - 1)


@given(st.integers(0, 2**40), st.integers(0, 9), st.integers(1, 40))
def test_words_are_those_of_numpys_philox(index: int, lane: int, count: int) -> None:
    key = np.frombuffer(KEY, dtype="<u8").astype(np.uint64)
    numpys = np.random.Philox(key=key, counter=np.array([0, lane, index, 0], dtype=np.uint64))
    assert np.array_equal(Stream(KEY).words(index, count, lane), numpys.random_raw(count))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 2)), max_size=5))
def test_words_do_not_depend_on_what_was_asked_before(before: list[tuple[int, int, int]]) -> None:
    stream = Stream(KEY)
    for index, count, lane in before:
        stream.words(index, count, lane)
    expected = Stream(KEY).words(3, 11, 1)
    assert np.array_equal(stream.words(3, 11, 1), expected)
    assert np.array_equal(stream.words(3, 4, 1), expected[:4])


def test_indices_lanes_and_keys_are_apart() -> None:
    streams = [(KEY, 0, 0), (KEY, 1, 0), (KEY, 0, 1), (stream_key("test", 1), 0, 0)]
    words = np.concatenate([Stream(key).words(i, 100, lane) for key, i, lane in streams])
    assert len(np.unique(words)) == 400


def test_words_never_change() -> None:
    assert stream_key("test", 0).hex() == "31f01a82e032b1f98968e680de6fa652"
    assert Stream(KEY).words(5, 3, 1).tolist() == [
        5575234403099427279,
        13073026355489271616,
        13561006408165819785,
    ]
    assert sample_without_replacement(Stream(KEY).words(5, 6), 9).tolist() == [3, 0, 6, 8, 2, 1]
    assert normal(Stream(KEY).words(5, 4)).round(12).tolist() == [-0.152393587256, 1.405261794169]


@given(st.lists(WORD, min_size=1, max_size=20), st.integers(1, 2**32 - 1))
def test_below_is_the_exact_product(words: list[int], bound: int) -> None:
    drawn = below(np.array(words, dtype=np.uint64), bound)
    assert drawn.tolist() == [word * bound >> 64 for word in words]


@given(st.lists(WORD, min_size=2, max_size=20).filter(lambda words: len(words) % 2 == 0))
def test_uniforms_and_normals_stay_in_range(words: list[int]) -> None:
    array = np.array([*words, 0, 2**64 - 1, 2**64 - 1, 0], dtype=np.uint64)
    assert (uniform(array) >= 0).all()
    assert (uniform(array) < 1).all()
    assert np.isfinite(normal(array)).all()


def test_uniforms_and_normals_have_their_distribution() -> None:
    words = Stream(KEY).words(0, 40_000)
    assert stats.kstest(uniform(words), "uniform").pvalue > 0.01
    assert stats.kstest(normal(words), "norm").pvalue > 0.01


@given(st.integers(0, 10**6), st.lists(st.integers(6, 40), min_size=1, max_size=4))
def test_drawn_numbers_are_distinct_and_in_range(index: int, population: list[int]) -> None:
    words = Stream(KEY).words(index, 6 * len(population)).reshape(-1, 6)
    drawn = sample_without_replacement(words, np.array(population))
    for row, size in zip(drawn, population, strict=True):
        assert len(set(row.tolist())) == 6
        assert set(row.tolist()) <= set(range(size))
    # Row by row, or all of them at once.
    alone = [sample_without_replacement(w, n) for w, n in zip(words, population, strict=True)]
    assert np.array_equal(drawn, np.stack(alone))


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD, WORD), max_size=4), st.integers(5, 2**32 - 1))
def test_draws_are_those_of_swapping(words: list[tuple[int, ...]], population: int) -> None:
    """Fisher and Yates, one swap after another, on a dictionary of what was moved."""
    for size in (5, 6, 9, population):
        rows = np.array(words, dtype=np.uint64).reshape(-1, 5)
        drawn = sample_without_replacement(rows, size)
        for row, mine in zip(rows.tolist(), drawn.tolist(), strict=True):
            moved: dict[int, int] = {}
            expected = []
            for j, word in enumerate(row):
                target = j + (word * (size - j) >> 64)
                expected.append(moved.get(target, target))
                moved[target] = moved.get(j, j)
            assert mine == expected


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_drawing_everything_gives_a_permutation(index: int, size: int) -> None:
    drawn = sample_without_replacement(Stream(KEY).words(index, size), size)
    assert sorted(drawn.tolist()) == list(range(size))


@pytest.mark.parametrize(("size", "draws"), [(4, 3), (5, 2), (3, 3), (60, 1)])
def test_every_ordered_sample_is_equally_likely(size: int, draws: int) -> None:
    words = Stream(KEY).words(7, 24_000 * draws).reshape(-1, draws)
    drawn = sample_without_replacement(words, size)
    codes = drawn @ size ** np.arange(draws)
    _, counts = np.unique(codes, return_counts=True)
    outcomes = int(np.prod(np.arange(size, size - draws, -1)))
    assert len(counts) == outcomes
    assert stats.chisquare(counts).pvalue > 0.01
