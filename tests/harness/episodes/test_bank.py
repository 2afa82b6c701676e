"""The class bank: views, selections, and what it cannot serve."""

import numpy as np
import pytest

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
    assert chosen.data.tolist() == [4, 5, 0, 1, 2]
    assert chosen.offsets.tolist() == [0, 2, 5]
    assert (chosen.names, chosen.split, chosen.digest) == (("c", "a"), "test", "digest")
    assert bank(3, 1).select([], "test").n_items == 0


def test_selections_and_joins_of_several_arrays() -> None:
    one = bank(3, 1, 2)
    several = ClassBank(
        {"ids": one.data, "mask": one.data % 2 == 0}, one.offsets, one.names, "digest", "train"
    )
    chosen = several.select(["b"], "test")
    assert chosen.data["ids"].tolist() == [3]
    assert chosen.data["mask"].tolist() == [False]


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
