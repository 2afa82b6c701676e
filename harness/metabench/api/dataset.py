"""What a data-set plugin subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from metabench.api.backbone import ItemSpec
from metabench.api.recipe import Hyperparameters
from metabench.episodes.bank import ClassBank

Availability = Literal["ready", "unprepared", "missing"]
"""ready: banks come at once; unprepared: raw files are here; missing: needs a download."""

Report = Callable[[str, float | None], None]
"""`report(what, fraction)`: progress of a download or a preparation; None: unknown length."""


def no_report(what: str, fraction: float | None) -> None:
    """Report to nobody."""


class Dataset(ABC):
    """A source of items grouped by class, in three disjoint splits by class.

    Its identity is the digest of its decoded content and class names, never of an archive.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    family: ClassVar[str] = "images"
    reference: ClassVar[str]
    summary: ClassVar[str]
    licence: ClassVar[str]
    origin: ClassVar[str]
    """Where the files come from, for people."""
    card: ClassVar[str] = ""
    """What a user of a number has to know of the data: how it was made, what it is not."""
    download_bytes: ClassVar[int] = 0
    """0 where nothing has to be downloaded."""
    class_splits: ClassVar[tuple[str, ...]] = ("default",)
    """Names of its class splits; the first is the default."""
    rotations: ClassVar[bool] = False
    """Whether items may be turned by quarter turns (square images)."""
    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters

    def __init__(self, folder: Path, hp: Hyperparameters | None = None) -> None:
        """`folder` is the user's data folder; a data set writes only below `folder / name`."""
        self.folder = folder
        self.hp = hp if hp is not None else self.hyperparameters()

    @abstractmethod
    def availability(self) -> Availability:
        """Whether `banks` would work now; looks at files only."""

    @abstractmethod
    def prepare(self, report: Report = no_report) -> None:
        """Download what is missing and build the cache; nothing half-made stays behind.

        Raises:
            DataMissingError: it cannot be had (no network), with how to get it by hand.
            DataCorruptError: what is there is not what it should be.
        """

    @abstractmethod
    def item(self, image_size: int | None) -> ItemSpec:
        """What one item is, at that image size (None: as it is)."""

    @abstractmethod
    def digest(self) -> str:
        """32 hexadecimal digits of the decoded content and the class names; needs it prepared."""

    @abstractmethod
    def banks(self, class_split: str, image_size: int | None) -> Mapping[str, ClassBank]:
        """The banks `train`, `validation` (may be absent where a split has none) and `test`.

        Raises:
            UsageError: no class split or image size of that kind.
            DataMissingError: not prepared.
        """

    @abstractmethod
    def verify(self) -> None:
        """Compute the content digest anew from the cache and compare.

        Raises:
            DataCorruptError: names what differs.
        """

    @abstractmethod
    def remove(self) -> int:
        """Delete what this data set cached or downloaded itself; returns the bytes freed."""
