"""Class splits by digest of the name, and the banks of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.bank import ClassBank, assert_disjoint
from metabench.episodes.digest import digest_bytes


def digest_order(names: Iterable[str]) -> list[str]:
    """The names in the order of the BLAKE2b-128 digests of their UTF-8 bytes.

    As good as random, and the same for ever: it depends on no generator and no seed.
    """
    return sorted(names, key=lambda name: digest_bytes(name.encode()))


def split_groups(
    groups: Iterable[Sequence[str]], sizes: Mapping[str, int], rest: str
) -> dict[str, tuple[str, ...]]:
    """Split names so that no group is cut.

    The groups stand in the order of the digest of their first name in sorted order. Each split in
    turn, as ordered in `sizes`, walks through the groups that are left and takes those that still
    fit whole; `rest` gets what remains.

    Args:
        groups: of names; most have one.
        sizes: of the splits but `rest`.
        rest: the split that takes the others.

    Returns:
        sorted names by split, `rest` first.

    Raises:
        ValueError: a split could not be filled exactly, for want of small groups.
    """
    by_head = {min(group): sorted(group) for group in groups}
    left = digest_order(by_head)
    splits: dict[str, tuple[str, ...]] = {rest: ()}
    for split, size in sizes.items():
        taken: list[str] = []
        for head in list(left):
            if len(taken) + len(by_head[head]) <= size:
                taken += by_head[head]
                left.remove(head)
        if len(taken) != size:
            raise ValueError(f"{split} has room for {size} names, the groups fill {len(taken)}")
        splits[split] = tuple(sorted(taken))
    splits[rest] = tuple(sorted(name for head in left for name in by_head[head]))
    return splits


def split_banks(
    data: NDArray[Any] | Mapping[str, NDArray[Any]],
    offsets: NDArray[np.int64],
    names: Sequence[str],
    digest: str,
    splits: Mapping[str, Sequence[str]],
) -> dict[str, ClassBank]:
    """The bank of each split, all on the same `data`; a split without names has none.

    Args:
        data: an array (n_items, ...) or several by name, grouped by class. Never copied: a memory
            map stays one.
        offsets: (C + 1,) class c owns items offsets[c] to offsets[c + 1].
        names: of the C classes.
        digest: the data set's identity, see `content_digest`.
        splits: class names by split, disjoint.

    Raises:
        ProtocolError: a class stands in two splits.
    """
    whole = ClassBank(data, offsets, tuple(names), digest, "all")
    banks = {split: whole.select(chosen, split) for split, chosen in splits.items() if chosen}
    assert_disjoint(banks)
    return banks
