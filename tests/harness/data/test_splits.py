"""Class splits by digest of the name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.data.splits import digest_order, split_banks, split_groups
from metabench.errors import ProtocolError

NAMES = st.lists(st.text(max_size=8), unique=True, max_size=30)


@given(NAMES, st.randoms(use_true_random=False))
def test_digest_order_depends_on_the_names_alone(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert digest_order(shuffled) == digest_order(names)
    assert sorted(digest_order(names)) == sorted(names)


def test_digest_order_is_frozen() -> None:
    assert digest_order(["ant", "bee", "cat", "dog"]) == ["dog", "cat", "ant", "bee"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), st.data())
def test_no_group_is_cut_and_sizes_are_met(group_sizes: list[int], data: st.DataObject) -> None:
    groups = [[f"{i}-{j}" for j in range(size)] for i, size in enumerate(group_sizes)]
    singles = [[f"single-{i}"] for i in range(8)]  # so that any size up to 8 can be filled
    test = data.draw(st.integers(0, 4))
    validation = data.draw(st.integers(0, 4))
    splits = split_groups(groups + singles, {"validation": validation, "test": test}, "train")
    assert list(splits) == ["train", "validation", "test"]
    assert (len(splits["validation"]), len(splits["test"])) == (validation, test)
    names = [name for split in splits.values() for name in split]
    assert sorted(names) == sorted(name for group in groups + singles for name in group)
    for group in groups:
        assert sum(any(name in split for name in group) for split in splits.values()) == 1


def test_a_split_that_groups_cannot_fill_is_an_error() -> None:
    with pytest.raises(ValueError, match="test has room for 1 names, the groups fill 0"):
        split_groups([["a", "b"], ["c", "d"]], {"test": 1}, "train")


def test_banks_hold_their_classes_items_and_leave_out_an_empty_split() -> None:
    data = np.arange(6)
    offsets = np.array([0, 1, 3, 6])
    splits = {"train": ("c", "a"), "validation": (), "test": ("b",)}
    banks = split_banks(data, offsets, ["a", "b", "c"], "0" * 32, splits)
    assert list(banks) == ["train", "test"]
    assert banks["train"].names == ("c", "a")
    assert banks["train"].items().tolist() == [3, 4, 5, 0]
    assert banks["train"].offsets.tolist() == [0, 3, 4]
    assert banks["test"].items().tolist() == [1, 2]
    assert {bank.split for bank in banks.values()} == {"train", "test"}


@pytest.mark.parametrize("several", [False, True])
def test_splits_of_a_memory_map_lie_on_that_map(tmp_path: Path, several: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    data = {"image": mapped, "number": np.arange(60)} if several else mapped
    names = [f"class {c}" for c in range(6)]
    splits = {"train": names[5:2:-1], "validation": names[:1], "test": names[1:3]}
    banks = split_banks(data, np.arange(7) * 10, names, "0" * 32, splits)
    for split, chosen in splits.items():
        classes = [int(name[-1]) for name in chosen]
        copied = np.concatenate([images[10 * c : 10 * c + 10] for c in classes])
        bank = banks[split]
        read, held = bank.items(), bank.data
        if several:
            assert (read["number"] // 10).tolist() == np.repeat(classes, 10).tolist()
            read, held = read["image"], held["image"]
        assert held is mapped
        assert np.shares_memory(held, mapped)
        assert not np.shares_memory(read, mapped)
        assert np.array_equal(read, copied)
        assert bank.nbytes == copied.nbytes + (8 * bank.n_items if several else 0)


def test_a_class_in_two_splits_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="'a' is in the train split and in the test split"):
        split_banks(np.arange(2), np.arange(3), ["a", "b"], "", {"train": ["a"], "test": ["a"]})
