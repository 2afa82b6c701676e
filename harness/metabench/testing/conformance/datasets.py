"""Checks of a data set, on what of it is on this machine."""

from __future__ import annotations

import re
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from metabench.api.dataset import Availability, Dataset
from metabench.data.folder import data_folder
from metabench.episodes.bank import SPLITS, ClassBank, assert_disjoint
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.errors import MetabenchError
from metabench.registry import Entry
from metabench.testing.conformance.facts import add_check_of_the_clock, add_checks_of_facts
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError

DIGEST = re.compile(r"[0-9a-f]{32}")
SMALLEST = Protocol(ways=2, shots=1, queries=1, episodes=2)
NO_SPLIT = "no such split"


@dataclass(frozen=True)
class DatasetSubject:
    """A data set that is checked; see `AlgorithmSubject`.

    Attributes:
        folder: where its raw files are looked for; None: the user's data folder.
        scratch: a folder for what it makes; None: one that goes with the process.
    """

    entry: Entry
    cls: type[Dataset]
    target: str = ""
    folder: Path | None = None
    scratch: Path | None = None
    _temporary: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)

    @cached_property
    def own_folder(self) -> bool:
        """Whether it needs no files of the user's; it then lives in a folder that is removed."""
        with tempfile.TemporaryDirectory() as empty:
            return self.cls(Path(empty)).availability() != "missing"

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, prepared.

        Raises:
            NotApplicableError: it is not on this machine.
        """
        if self.own_folder:
            if self.scratch is None:
                self._temporary.append(tempfile.TemporaryDirectory())
            dataset = self.cls(self.scratch or Path(self._temporary[0].name))
            dataset.prepare()
            return dataset
        dataset = self.cls(data_folder(self.folder))
        if dataset.availability() != "ready":
            raise NotApplicableError(
                f"it is not prepared on this machine: metabench data prepare {self.cls.name}"
            )
        return dataset

    @cached_property
    def banks(self) -> dict[str, Mapping[str, ClassBank]]:
        """The banks of each class split."""
        return {split: self.dataset.banks(split, None) for split in self.cls.class_splits}

    @property
    def each_bank(self) -> list[tuple[str, ClassBank]]:
        """All banks, and what they are called in a message."""
        return [
            (f"{name} of {split}", bank)
            for split, banks in self.banks.items()
            for name, bank in banks.items()
        ]


CHECKS = Checks()
add_checks_of_facts(CHECKS)


@CHECKS.add("it says under which licence it stands, where it comes from, and how it may be split")
def provenance(subject: DatasetSubject) -> None:
    cls = subject.cls
    for fact in ("licence", "origin"):
        text = getattr(cls, fact, "")
        if not (isinstance(text, str) and text.strip()):
            raise NonconformityError(f"it states its {fact}", f"it is {text!r}", cls)
    if not cls.class_splits or len(set(cls.class_splits)) != len(cls.class_splits):
        raise NonconformityError(
            "class_splits names at least one split, each once", f"{cls.class_splits!r}", cls
        )
    if cls.download_bytes < 0:
        raise NonconformityError("download_bytes is 0 or more", f"{cls.download_bytes}", cls)


@CHECKS.add("asked whether it is here, it looks, and leaves nothing")
def availability(subject: DatasetSubject) -> str:
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) / "not made yet"
        found = subject.cls(folder).availability()
        if folder.exists():
            raise NonconformityError(
                "availability() looks at files and makes none",
                f"it made {_listed(folder)}",
                subject.cls.availability,
            )
    if found not in typing.get_args(Availability):
        raise NonconformityError(
            f"one of {', '.join(typing.get_args(Availability))}",
            f"availability() returned {found!r}",
            subject.cls.availability,
        )
    return found


@CHECKS.add("prepared, it is ready; prepared again it is the same; it writes in its own folder")
def preparation(subject: DatasetSubject) -> str:
    dataset = subject.dataset
    if dataset.availability() != "ready":
        raise NonconformityError(
            "after prepare() it is ready", f"it is {dataset.availability()}", subject.cls.prepare
        )
    first = dataset.digest()
    dataset.prepare()
    if not DIGEST.fullmatch(first) or dataset.digest() != first:
        raise NonconformityError(
            "digest() is 32 hexadecimal digits, the same after a second prepare()",
            f"{first!r}, then {dataset.digest()!r}",
            subject.cls.digest,
        )
    if subject.own_folder:
        strange = [p.name for p in dataset.folder.iterdir() if p.name != dataset.name]
        if strange:
            raise NonconformityError(
                f"it writes below its own folder {dataset.name}/ alone",
                f"it wrote {', '.join(strange[:5])}",
                subject.cls.prepare,
            )
    return first


@CHECKS.add("its splits are disjoint by class, and each class has items")
def splits(subject: DatasetSubject) -> str:
    told = []
    for split, banks in subject.banks.items():
        unknown = set(banks) - set(SPLITS)
        if unknown or not {"train", "test"} <= set(banks):
            raise NonconformityError(
                f"banks({split!r}) has train and test, and validation or none",
                f"it has {', '.join(banks) or 'nothing'}",
                subject.cls.banks,
            )
        try:
            assert_disjoint(banks)
        except MetabenchError as error:
            raise NonconformityError(
                "no class stands in two splits", error.message, subject.cls.banks
            ) from error
        for name, bank in banks.items():
            _check_bank(subject, bank, f"{name} of {split}")
        told.append(f"{split} {'/'.join(str(bank.n_classes) for bank in banks.values())} classes")
    return ", ".join(told)


def _check_bank(subject: DatasetSubject, bank: ClassBank, what: str) -> None:
    if bank.n_classes == 0 or int(bank.class_sizes.min()) < 1:
        raise NonconformityError("each class has an item", f"{what} has an empty one", subject.cls)
    if bank.offsets[0] != 0 or np.any(np.diff(bank.offsets) < 0):
        raise NonconformityError(
            "offsets ascend from 0", f"those of {what} do not", subject.cls.banks
        )
    if bank.digest != subject.dataset.digest():
        raise NonconformityError(
            "a bank bears the data set's digest", f"{what} bears {bank.digest}", subject.cls.banks
        )


@CHECKS.add("its items are what item() says")
def items(subject: DatasetSubject) -> str:
    item = subject.dataset.item(None)
    for what, bank in subject.each_bank:
        some = bank.items(np.arange(min(3, bank.n_items)))
        if isinstance(some, Mapping):
            continue  # several arrays an item: their shapes are the algorithm's business
        if some.shape[1:] != item.shape:
            raise NonconformityError(
                f"items of shape {item.shape}, as item() says",
                f"those of {what} are {some.shape[1:]}",
                subject.cls.item,
            )
        if item.kind == "image" and some.dtype != np.uint8:
            raise NonconformityError(
                "images are stored as uint8", f"those of {what} are {some.dtype}", subject.cls.banks
            )
    return f"{item.kind} {'x'.join(map(str, item.shape))}"


@CHECKS.add("episodes can be drawn from every split")
def episodes(subject: DatasetSubject) -> None:
    for what, bank in subject.each_bank:
        try:
            EpisodeSource(bank, SMALLEST.shape, protocol_key(bank, SMALLEST)).draw(range(3))
        except MetabenchError as error:
            raise NonconformityError(
                "two ways, one shot and one query can be drawn",
                f"not from {what}: {error.message}",
                subject.cls.banks,
            ) from error


@CHECKS.add("a class split that it does not have is refused")
def unknown_split(subject: DatasetSubject) -> None:
    dataset = subject.dataset
    try:
        dataset.banks(NO_SPLIT, None)
    except MetabenchError:
        return
    except Exception as error:
        raise NonconformityError(
            "a UsageError that names its splits",
            f"{type(error).__name__}: {error}",
            subject.cls.banks,
        ) from error
    raise NonconformityError(
        "a UsageError that names its splits", f"{NO_SPLIT!r} was taken", subject.cls.banks
    )


@CHECKS.add("its content still has the digest that it says")
def verification(subject: DatasetSubject) -> None:
    try:
        subject.dataset.verify()
    except MetabenchError as error:
        raise NonconformityError(
            "verify() finds the content that was prepared", error.message, subject.cls.verify
        ) from error


@CHECKS.add("removed, it is gone, and says how much it was")
def removal(subject: DatasetSubject) -> str:
    if not subject.own_folder:
        raise NotApplicableError("it needs files of yours, and nothing of these is removed")
    with tempfile.TemporaryDirectory() as name:
        dataset = subject.cls(Path(name))
        before = dataset.availability()
        dataset.prepare()
        made = any(path.is_file() for path in Path(name).rglob("*"))
        freed = dataset.remove()
        left = [path for path in Path(name).rglob("*") if path.is_file()]
        if left or dataset.availability() != before:
            raise NonconformityError(
                f"remove() deletes what it made, and it is {before} again",
                f"{_listed(Path(name)) or 'nothing'} is left, and it is {dataset.availability()}",
                subject.cls.remove,
            )
        if made and freed <= 0:
            raise NonconformityError(
                "remove() returns the bytes that it freed", f"{freed}", subject.cls.remove
            )
    return f"{freed / 2**20:.1f} MiB"


def _listed(folder: Path) -> str:
    return ", ".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))[:5])


add_check_of_the_clock(CHECKS)
