"""What an algorithm is handed: batches of episodes as pytrees of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

PyTree = Any
"""A tensor, or a mapping, list, tuple or named tuple of pytrees, or None."""


class Items(NamedTuple):
    """B sets of S items each.

    Attributes:
        data: a tensor (B, S, ...) or a pytree of such; images are float, (B, S, C, H, W), values
            in [0, 1] unless the data set states a mean and standard deviation.
        mask: (B, S) bool, False where the slot is padding; None where all are real. What lies in
            padding is finite, and decides nothing but where moments are taken of a whole batch.
    """

    data: PyTree
    mask: Tensor | None = None


class Targets(NamedTuple):
    """What is to be predicted for B sets of S items.

    Attributes:
        values: (B, S) int64 class ids 0 to ways - 1, (B, S, length) token tags, or (B, S, D) reals.
        mask: (B, S) bool, False where the slot is padding; None where all are real.
    """

    values: Tensor
    mask: Tensor | None = None


class Support(NamedTuple):
    """The support sets of B episodes.

    Attributes:
        items: B x S items, S = ways x shots where classes are balanced.
        targets: their targets.
        ways: the number of classes in each episode.
    """

    items: Items
    targets: Targets
    ways: int


class EpisodeBatch(NamedTuple):
    """B episodes for meta-training. At meta-test no algorithm is handed one of these.

    Attributes:
        support: the support sets.
        queries: B x Q items.
        query_targets: their targets.
        classes: (B, ways) ids of the training classes behind the labels.
    """

    support: Support
    queries: Items
    query_targets: Targets
    classes: Tensor


class ItemBatch(NamedTuple):
    """Items outside episodes, for plain supervised training.

    Attributes:
        data: a pytree of tensors (n, ...).
        classes: (n,) int64 ids of the training classes; None where labels are withheld.
    """

    data: PyTree
    classes: Tensor | None


def tree_map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Apply `fn` to each tensor of one or more pytrees of the same structure; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: tree_map(fn, value, *(r[key] for r in rest)) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(fn, *parts) for parts in zip(tree, *rest, strict=True)))
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(fn, *parts) for parts in zip(tree, *rest, strict=True))
    return fn(tree, *rest)


def one_episode(batch: EpisodeBatch, b: int) -> EpisodeBatch:
    """The b-th episode of a batch, as a batch."""
    one: EpisodeBatch = tree_map(lambda x: x[b : b + 1] if isinstance(x, Tensor) else x, batch)
    return one


def flatten_sets(data: PyTree) -> PyTree:
    """(B, S, ...) to (B * S, ...), for networks that take one batch dimension."""
    return tree_map(lambda x: x.flatten(0, 1), data)


def unflatten_sets(data: PyTree, sets: int) -> PyTree:
    """(B * S, ...) back to (B, S, ...), B = `sets`."""
    return tree_map(lambda x: x.unflatten(0, (sets, -1)), data)


def leading_size(tree: PyTree) -> int:
    """The first dimension of the first tensor in a pytree.

    Raises:
        ValueError: there is no tensor in it.
    """
    if isinstance(tree, Tensor):
        return int(tree.shape[0])
    parts = tree.values() if isinstance(tree, Mapping) else tree or ()
    for part in parts:
        try:
            return leading_size(part)
        except ValueError:
            continue
    raise ValueError("a pytree without tensors has no leading size")
