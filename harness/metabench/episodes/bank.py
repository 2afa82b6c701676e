"""The class bank: the items of one split as arrays, grouped by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.protocol import EpisodeShape, Rotation
from metabench.errors import ProtocolError

SPLITS = ("train", "validation", "test")

Data = NDArray[Any] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ClassBank:
    """Items of one split, grouped by class: class c owns items offsets[c] to offsets[c + 1].

    With `views` over 1 each underlying class stands for that many classes, one per rotation:
    class id c is the underlying class c // views turned by (c % views) quarter turns. The items are
    not copied; the turning happens when an episode is gathered.

    Banks may share `data`: the splits of a data set do, whose items may be more than memory holds.
    What is in `data` then is not all theirs, nor in their order: `items` reads through `rows`.

    Attributes:
        data: an array (n_rows, ...), or a mapping of names to such arrays. Images are uint8.
        offsets: (n_underlying + 1,) int64, ascending from 0 to n_items.
        names: the underlying classes' names; the same name in two splits is the same class.
        digest: identity of the data set's decoded content and class names.
        split: train, validation or test; for error messages and the random stream.
        views: 1, or 4 where rotations are classes.
        rows: (n_items,) int64: item i lies at row rows[i] of `data`; None: at row i.
    """

    data: Data
    offsets: NDArray[np.int64]
    names: tuple[str, ...]
    digest: str
    split: str
    views: int = 1
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.names) + 1 or len(set(self.names)) != len(self.names):
            raise ValueError("a class bank needs one offset more than it has distinct class names")
        if self.rows is not None and len(self.rows) != self.n_items:
            raise ValueError("a class bank with rows needs one for each of its items")

    @property
    def n_items(self) -> int:
        """Stored items, each counted once whatever `views`."""
        return int(self.offsets[-1])

    @property
    def n_classes(self) -> int:
        """Classes that episodes draw from: underlying classes x views."""
        return len(self.names) * self.views

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """(n_underlying,) items in each underlying class."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of its own items, however many others lie in `data`."""
        arrays = self.data.values() if isinstance(self.data, Mapping) else [self.data]
        return self.n_items * sum(math.prod(a.shape[1:]) * a.itemsize for a in arrays)

    def rows_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in `data` the items with ids `index` (...) lie."""
        return index if self.rows is None else self.rows[index]

    def items(self, index: NDArray[np.int64] | None = None) -> Data:
        """A copy of the items with ids `index` (...); None: of all, in their order.

        Returns:
            an array (..., *item shape), or such arrays by name.
        """
        rows = self.rows_of(np.arange(self.n_items) if index is None else index)
        if isinstance(self.data, Mapping):
            return {key: value[rows] for key, value in self.data.items()}
        return self.data[rows]

    def rotated(self) -> ClassBank:
        """The same items with each quarter turn of a class as a class of its own."""
        return replace(self, views=4)

    def select(self, names: Sequence[str], split: str) -> ClassBank:
        """The bank of some of the classes, in the order given; their items stay where they lie."""
        place = {name: i for i, name in enumerate(self.names)}
        ids = np.array([place[name] for name in names], dtype=np.int64)
        ranges = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in ids]
        index = np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.class_sizes[ids])]).astype(np.int64)
        rows = self.rows_of(index)
        return replace(self, rows=rows, offsets=offsets, names=tuple(names), split=split)

    def joined(self, other: ClassBank) -> ClassBank:
        """The classes of two splits as one, the other's behind.

        Their items stay where they lie if it is in the same arrays, else they are copied.
        """

        def both(mine: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([mine, theirs])

        data: Any = self.data
        rows: NDArray[np.int64] | None = None
        if _same_arrays(self.data, other.data):
            rows = both(*(bank.rows_of(np.arange(bank.n_items)) for bank in (self, other)))
        else:
            mine, theirs = self.items(), other.items()
            if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
                data = {key: both(value, theirs[key]) for key, value in mine.items()}
            else:
                data = both(mine, theirs)  # type: ignore[arg-type]
        return replace(
            self,
            data=data,
            rows=rows,
            offsets=np.concatenate([self.offsets, self.n_items + other.offsets[1:]]),
            names=self.names + other.names,
            split=f"{self.split}+{other.split}",
        )

    def check_serves(self, shape: EpisodeShape) -> None:
        """Raise ProtocolError unless every episode of that shape can be drawn from here."""
        views = 4 if shape.rotation is Rotation.CLASSES else 1
        classes = len(self.names) * max(views, self.views)
        if shape.ways > classes:
            raise ProtocolError(
                f"{shape.ways} ways asked for, but the {self.split} split has {classes} classes",
                "ask for fewer ways, or choose another class split",
            )
        need = shape.shots + shape.most_queries
        smallest = int(np.argmin(self.class_sizes))
        have = int(self.class_sizes[smallest])
        if need > have:
            raise ProtocolError(
                f"{shape.shots} shots + {shape.most_queries} queries = {need} items a class asked "
                f"for, but class {self.names[smallest]!r} of the {self.split} split has {have}",
                "ask for fewer shots or queries"
                + ("" if shape.dirichlet is None else ": one class may get them all (dirichlet)"),
            )


def _same_arrays(one: Data, other: Data) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    return one is other


def assert_disjoint(banks: Mapping[str, ClassBank]) -> None:
    """Raise ProtocolError if an underlying (unrotated) class stands in two splits."""
    owner: dict[str, str] = {}
    for split, bank in banks.items():
        for name in bank.names:
            if name in owner:
                raise ProtocolError(
                    f"class {name!r} is in the {owner[name]} split and in the {split} split",
                    "splits must not share classes; mend the data set's class split",
                )
            owner[name] = split
