"""The class bank: views, selections, and what it cannot serve."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.episodes.bank import ClassBank, assert_disjoint
from metabench.episodes.protocol import EpisodeShape, Rotation
from metabench.errors import ProtocolError


def bank(*sizes: int, split: str = "train", first: str = "a") -> ClassBank:
    """Classes a, b, ... of these sizes; item i is the number i."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    names = tuple(chr(ord(first) + c) for c in range(len(sizes)))
    return ClassBank(np.arange(offsets[-1], dtype=np.int64), offsets, names, "digest", split)


def test_sizes_and_names() -> None:
    one = bank(3, 1, 2)
    assert (one.n_items, one.n_classes) == (6, 3)
    assert one.class_sizes.tolist() == [3, 1, 2]
    assert one.names == ("a", "b", "c")


def test_rotations_are_classes_of_the_same_items() -> None:
    turned = bank(3, 1).rotated()
    assert (turned.n_items, turned.n_classes) == (4, 8)
    assert turned.rotated() == turned


def test_selected_classes_keep_their_items_in_the_order_asked_for() -> None:
    chosen = bank(3, 1, 2).select(["c", "a"], "test")
    assert chosen.items().tolist() == [4, 5, 0, 1, 2]
    assert chosen.offsets.tolist() == [0, 2, 5]
    assert (chosen.names, chosen.split, chosen.digest) == (("c", "a"), "test", "digest")
    assert bank(3, 1).select([], "test").n_items == 0


def test_selections_and_joins_of_several_arrays() -> None:
    one = bank(3, 1, 2)
    several = ClassBank(
        {"ids": one.data, "mask": one.data % 2 == 0}, one.offsets, one.names, "digest", "train"
    )
    chosen = several.select(["b"], "test")
    assert chosen.data is several.data
    assert chosen.items()["ids"].tolist() == [3]
    assert chosen.items()["mask"].tolist() == [False]

    both = chosen.joined(several.select(["c"], "validation"))
    assert both.data is several.data
    assert both.items()["ids"].tolist() == [3, 4, 5]

    copied = {key: value.copy() for key, value in several.data.items()}
    apart = ClassBank(copied, one.offsets, one.names, "digest", "train").select(["c"], "test")
    both = chosen.joined(apart)
    assert both.rows is None
    assert both.data["ids"].tolist() == [3, 4, 5]
    assert both.data["mask"].tolist() == [False, True, False]


def test_the_same_arrays_in_another_mapping_are_shared_too() -> None:
    one = bank(2, 2)
    data = {"ids": one.data, "mask": one.data > 1}
    first, second = (
        ClassBank(dict(data), one.offsets, one.names, "digest", "all").select([name], name)
        for name in "ab"
    )
    both = second.joined(first)
    assert all(both.data[key] is value for key, value in data.items())
    assert both.items()["mask"].tolist() == [True, True, False, False]


@st.composite
def selections(draw: st.DrawFn) -> tuple[list[int], list[str], list[str]]:
    """Class sizes, names of some of the classes in any order, and of some of those."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    some = st.permutations("abcdefgh"[: len(sizes)])
    first = draw(some)[: draw(st.integers(1, len(sizes)))]
    second = draw(st.permutations(first))[: draw(st.integers(1, len(first)))]
    return sizes, first, second


def by_hand(sizes: list[int], names: list[str]) -> list[int]:
    """The items of classes a, b, ... of these sizes, picked from a list."""
    ends = list(accumulate(sizes))
    return [
        item for c in map("abcdefgh".index, names) for item in range(ends[c] - sizes[c], ends[c])
    ]


@given(selections(), st.data())
def test_a_selection_of_a_selection_is_an_index_into_the_array(
    chosen: tuple[list[int], list[str], list[str]], data: st.DataObject
) -> None:
    sizes, first, second = chosen
    whole = bank(*sizes)
    expected = np.array(by_hand(sizes, second))
    part = whole.select(first, "train").select(second, "test")
    assert part.data is whole.data
    assert part.n_items == len(expected)
    assert part.nbytes == expected.nbytes
    assert np.array_equal(part.items(), expected)
    index = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=2, max_size=9))
    assert np.array_equal(part.items(np.array([index, index])), expected[[index, index]])
    for c, name in enumerate(part.names):
        own = part.items(np.arange(*part.offsets[c : c + 2]))
        assert own.tolist() == by_hand(sizes, [name])


@given(selections())
def test_joined_selections_of_one_array_share_it(
    chosen: tuple[list[int], list[str], list[str]],
) -> None:
    sizes, first, _ = chosen
    middle = len(first) // 2
    whole = bank(*sizes)
    both = whole.select(first[:middle], "train").joined(whole.select(first[middle:], "test"))
    together = whole.select(first, "train+test")
    assert both.data is whole.data
    assert (both.names, both.split) == (together.names, together.split)
    assert both.offsets.tolist() == together.offsets.tolist()
    assert both.items().tolist() == together.items().tolist() == by_hand(sizes, first)


def test_joined_selections_of_different_arrays_are_copied() -> None:
    mine = bank(3, 1, 2).select(["c", "a"], "train")
    theirs = bank(2, 2, first="x").select(["y"], "validation")
    for one, other, expected in (
        (mine, theirs, [4, 5, 0, 1, 2, 2, 3]),
        (theirs, mine, [2, 3, 4, 5, 0, 1, 2]),
    ):
        both = one.joined(other)
        assert both.rows is None
        assert both.data.tolist() == both.items().tolist() == expected
        assert both.nbytes == both.data.nbytes


def test_what_is_read_is_a_copy() -> None:
    for whole in (bank(3, 1), bank(3, 1).select(["b", "a"], "test")):
        before = whole.data.copy()
        for read in (whole.items(), whole.items(np.array([0, 2]))):
            read[:] = -1
        assert np.array_equal(whole.data, before)


def test_a_class_bank_with_too_few_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="one for each of its items"):
        ClassBank(np.arange(4), np.array([0, 2]), ("a",), "digest", "test", rows=np.arange(3))


def test_joined_splits_hold_both() -> None:
    both = bank(3, 1).joined(bank(2, 4, split="validation", first="x"))
    assert both.names == ("a", "b", "x", "y")
    assert both.class_sizes.tolist() == [3, 1, 2, 4]
    assert both.data.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert both.split == "train+validation"


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct class names"):
        ClassBank(np.zeros(2), np.array([0, 1, 2]), ("a", "a"), "digest", "train")


def test_too_many_ways_are_an_error_that_names_split_and_numbers() -> None:
    shape = EpisodeShape(ways=4, shots=1, queries=1)
    with pytest.raises(ProtocolError) as caught:
        bank(5, 5, 5, split="validation").check_serves(shape)
    for word in ("4 ways", "validation", "3 classes"):
        assert word in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_too_few_items_are_an_error_that_names_class_split_and_numbers() -> None:
    with pytest.raises(ProtocolError) as caught:
        bank(9, 4, 9, split="test").check_serves(EpisodeShape(ways=2, shots=3, queries=2))
    for word in ("3 shots + 2 queries = 5", "'b'", "test", "has 4"):
        assert word in caught.value.message
    assert caught.value.hint


def test_what_just_fits_is_served() -> None:
    bank(5, 5).check_serves(EpisodeShape(ways=2, shots=3, queries=2))
    bank(5, 5).check_serves(EpisodeShape(ways=8, shots=3, queries=2, rotation=Rotation.CLASSES))
    bank(5, 5).rotated().check_serves(EpisodeShape(ways=8, shots=3, queries=2))


def test_a_class_in_two_splits_is_an_error_that_names_all_three() -> None:
    banks = {"train": bank(2, 2), "test": bank(2, 2, first="x")}
    assert_disjoint(banks)
    with pytest.raises(
        ProtocolError, match="'b' is in the train split and in the validation split"
    ):
        assert_disjoint({**banks, "validation": bank(2, first="b")})
