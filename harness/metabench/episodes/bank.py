"""The class bank: the items of one split as arrays, grouped by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabench.episodes.protocol import EpisodeShape, Rotation
from metabench.errors import ProtocolError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ClassBank:
    """Items of one split, grouped by class: class c owns items offsets[c] to offsets[c + 1].

    With `views` over 1 each underlying class stands for that many classes, one per rotation:
    class id c is the underlying class c // views turned by (c % views) quarter turns. The items are
    not copied; the turning happens when an episode is gathered.

    Attributes:
        data: an array (n_items, ...), or a mapping of names to such arrays. Images are uint8.
        offsets: (n_underlying + 1,) int64, ascending from 0 to n_items.
        names: the underlying classes' names; the same name in two splits is the same class.
        digest: identity of the data set's decoded content and class names.
        split: train, validation or test; for error messages and the random stream.
        views: 1, or 4 where rotations are classes.
    """

    data: NDArray[Any] | Mapping[str, NDArray[Any]]
    offsets: NDArray[np.int64]
    names: tuple[str, ...]
    digest: str
    split: str
    views: int = 1

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.names) + 1 or len(set(self.names)) != len(self.names):
            raise ValueError("a class bank needs one offset more than it has distinct class names")

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

    def rotated(self) -> ClassBank:
        """The same items with each quarter turn of a class as a class of its own."""
        return replace(self, views=4)

    def select(self, names: Sequence[str], split: str) -> ClassBank:
        """The bank of some of the classes, in the order given; a copy of their items."""
        place = {name: i for i, name in enumerate(self.names)}
        ids = np.array([place[name] for name in names], dtype=np.int64)
        ranges = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in ids]
        index = np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)
        if isinstance(self.data, Mapping):
            data: Any = {key: value[index] for key, value in self.data.items()}
        else:
            data = self.data[index]
        offsets = np.concatenate([[0], np.cumsum(self.class_sizes[ids])]).astype(np.int64)
        return replace(self, data=data, offsets=offsets, names=tuple(names), split=split)

    def joined(self, other: ClassBank) -> ClassBank:
        """The classes of two splits as one, the other's behind; a copy of their items."""

        def both(mine: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([mine, theirs])

        if isinstance(self.data, Mapping) and isinstance(other.data, Mapping):
            data: Any = {key: both(value, other.data[key]) for key, value in self.data.items()}
        else:
            data = both(self.data, other.data)  # type: ignore[arg-type]
        return replace(
            self,
            data=data,
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
        need = shape.shots + shape.queries
        smallest = int(np.argmin(self.class_sizes))
        have = int(self.class_sizes[smallest])
        if need > have:
            raise ProtocolError(
                f"{shape.shots} shots + {shape.queries} queries = {need} items a class asked for, "
                f"but class {self.names[smallest]!r} of the {self.split} split has {have}",
                "ask for fewer shots or queries",
            )


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
