"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from metabench import (
    ArrayCache,
    Arrays,
    Availability,
    ClassBank,
    DataCorruptError,
    DataHome,
    DataMissingError,
    Dataset,
    ItemSpec,
    Report,
    UsageError,
    content_digest,
    digest_order,
    no_report,
    split_banks,
)
from metabench_plugins.datasets.omniglot_files import (
    BY_HAND,
    DRAWINGS,
    GET,
    SIDE,
    Character,
    download,
    known_characters,
    read_ink,
    sources,
)

DEFAULT_SIZE = 28
SMALLEST = 8
CONTENT_DIGEST = "500e2d90f7463365353485fc907cf518"
"""Of the official drawings at 105x105 (packed ink) and the characters' names."""
VALIDATION_ALPHABETS = 5
_MADE_BY = {"content": CONTENT_DIGEST, "resized": "Pillow LANCZOS, ink 255 on 0"}

Split = dict[str, tuple[str, ...]]


def lake(characters: tuple[Character, ...]) -> Split:
    """Whole alphabets: five of the 30 background ones, by digest of the name, are validation."""
    background = {c.alphabet for c in characters if c.half == "background"}
    validation = set(digest_order(background)[:VALIDATION_ALPHABETS])
    return {
        "train": tuple(c.name for c in characters if c.alphabet in background - validation),
        "validation": tuple(c.name for c in characters if c.alphabet in validation),
        "test": tuple(c.name for c in characters if c.half == "evaluation"),
    }


def vinyals(characters: tuple[Character, ...]) -> Split:
    """1028/172/423 characters: the published lists of Vinyals et al. 2016, as Snell et al. used."""
    return {
        split: tuple(c.name for c in characters if c.vinyals == split)
        for split in ("train", "validation", "test")
    }


def maml(characters: tuple[Character, ...]) -> Split:
    """1100/100/423 characters in the order of their names' digests; the paper's was random."""
    names = digest_order(c.name for c in characters)
    return _sorted({"train": names[:1100], "validation": names[1100:1200], "test": names[1200:]})


def reptile(characters: tuple[Character, ...]) -> Split:
    """1200/423 characters and no validation: the test classes of `maml`."""
    names = digest_order(c.name for c in characters)
    return _sorted({"train": names[:1200], "test": names[1200:]})


def _sorted(split: Mapping[str, list[str]]) -> Split:
    return {name: tuple(sorted(classes)) for name, classes in split.items()}


SPLITS: dict[str, Callable[[tuple[Character, ...]], Split]] = {
    "vinyals": vinyals,
    "lake": lake,
    "maml": maml,
    "reptile": reptile,
}


@functools.cache
def classes_by_split(name: str) -> Split:
    """Class names by split.

    Raises:
        UsageError: there is no such class split.
    """
    if name not in SPLITS:
        raise UsageError(
            f"omniglot has no class split {name!r}", f"its class splits: {', '.join(SPLITS)}"
        )
    return SPLITS[name](known_characters())


def offsets() -> NDArray[np.int64]:
    """(1624,) where each class begins."""
    return np.arange(len(known_characters()) + 1, dtype=np.int64) * DRAWINGS


def resize(ink: NDArray[np.uint8], size: int, report: Report = no_report) -> NDArray[np.uint8]:
    """Images (n, 1, size, size), ink 255 on 0, of packed ink (n, 105, 14).

    Resampled by Lanczos as for MAML (cbfinn/maml, resize_images.py); at 105 they are as they were.
    """
    from PIL import Image

    images = np.empty((len(ink), 1, size, size), dtype=np.uint8)
    for i, packed in enumerate(ink):
        drawing = np.unpackbits(packed, axis=-1, count=SIDE) * np.uint8(255)
        if size != SIDE:
            image = Image.fromarray(drawing).resize((size, size), Image.Resampling.LANCZOS)
            drawing = np.asarray(image)
        images[i, 0] = drawing
        if i % 2000 == 0:
            report(f"omniglot: resizing to {size}x{size}", i / len(ink))
    return images


class Omniglot(Dataset):
    """The official Omniglot, from torchvision, an unzipped tree or zips in the data folder."""

    name = "omniglot"
    reference = "Lake et al. 2015, doi:10.1126/science.aab3050"
    summary = "1,623 handwritten characters of 50 alphabets, 20 drawings of each."
    licence = "MIT, Brenden Lake"
    origin = "github.com/brendenlake/omniglot, through torchvision"
    download_bytes = 9_464_212 + 6_462_886
    class_splits = tuple(SPLITS)
    rotations = True
    card = """\
1,623 characters of 50 alphabets, each drawn once by 20 people; 105x105 black and white, resized
once (Lanczos) to 28x28 or the protocol's image size, ink high. The identity is the digest of the
drawings at 105x105, so it is the same at every size.

Class splits, all on unrotated characters: `vinyals`, 1028/172/423, the lists of Vinyals et al.
2016, the most used; `lake`, whole alphabets: 25 of the 30 background alphabets for training, 5 (by
digest of the name) for validation, the 20 evaluation alphabets for testing; `maml`, 1100/100/423,
and `reptile`, 1200/423 without validation, in the order of the names' digests (the papers drew
theirs at random and did not publish them). In all but `lake` an alphabet may have characters in
several splits.

What it is not: hard, or colourful. Published algorithms stand within a few tenths of a percent of
each other at 5-way 5-shot; and 20 drawings a class are all there is for support and query."""

    def availability(self) -> Availability:
        if self._images(DEFAULT_SIZE).present():
            return "ready"
        here = self._ink().present() or all(sources(self._home()).values())
        return "unprepared" if here else "missing"

    def prepare(self, report: Report = no_report) -> None:
        self._home().sweep()
        try:
            self._prepare(report)
        except DataMissingError:
            download(self._home(), report)
            self._prepare(report)
        report("omniglot: ready", 1.0)

    def item(self, image_size: int | None) -> ItemSpec:
        size = _checked_size(image_size)
        return ItemSpec("image", (1, size, size))

    def digest(self) -> str:
        self._require()
        return CONTENT_DIGEST

    def banks(self, class_split: str, image_size: int | None) -> Mapping[str, ClassBank]:
        splits = classes_by_split(class_split)
        size = _checked_size(image_size)
        self._require()
        images = self._load(size, no_report).arrays["images"]
        names = [c.name for c in known_characters()]
        return split_banks(images, offsets(), names, CONTENT_DIGEST, splits)

    def verify(self) -> None:
        self._require()
        ink = self._ink().verify()
        if content_digest(ink.facts["names"], offsets(), ink.arrays) != CONTENT_DIGEST:
            raise DataCorruptError(f"omniglot in {self._home().raw} has another content", GET)
        for size in range(SMALLEST, SIDE + 1):
            try:
                self._images(size).verify()
            except DataMissingError:
                continue  # never asked for at that size

    def remove(self) -> int:
        return self._home().remove()

    def _home(self) -> DataHome:
        return DataHome(self.folder, self.name)

    def _ink(self) -> ArrayCache:
        return ArrayCache(self._home(), "ink-105", {"content": CONTENT_DIGEST})

    def _images(self, size: int) -> ArrayCache:
        return ArrayCache(self._home(), f"images-{size}", _MADE_BY)

    def _require(self) -> None:
        if self.availability() == "missing":
            raise DataMissingError(f"omniglot is not in {self._home().raw}", BY_HAND)

    def _prepare(self, report: Report) -> None:
        self._load_ink(report)
        self._load(DEFAULT_SIZE, report)

    def _load(self, size: int, report: Report) -> Arrays:
        """The images at a size, from their cache or made from the ink."""

        def build() -> Arrays:
            ink = self._load_ink(report).arrays["ink"]
            return Arrays({"images": resize(ink, size, report)})

        return self._images(size).get(build)

    def _load_ink(self, report: Report) -> Arrays:
        """The drawings at 105x105, from their cache or from the raw files."""

        def build() -> Arrays:
            names, ink = read_ink(self._home(), report)
            if content_digest(names, offsets(), {"ink": ink}) != CONTENT_DIGEST:
                raise DataCorruptError(f"omniglot in {self._home().raw} has another content", GET)
            return Arrays({"ink": ink}, {"names": list(names)})

        return self._ink().get(build)


def _checked_size(image_size: int | None) -> int:
    size = DEFAULT_SIZE if image_size is None else image_size
    if not SMALLEST <= size <= SIDE:
        raise UsageError(
            f"omniglot has images of {SMALLEST} to {SIDE} pixels a side, not {size}",
            "change image_size in the protocol",
        )
    return size
