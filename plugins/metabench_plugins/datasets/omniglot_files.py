"""Reading Omniglot's own files: a tree or zips of PNG, into packed ink and class names."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metabench import (
    DataCorruptError,
    DataHome,
    DataMissingError,
    Report,
    ZipLimits,
    content_digest,
    open_zip,
)

SIDE = 105
DRAWINGS = 20
"""Of each character."""
HALVES = ("images_background", "images_evaluation")
FOLDER = "omniglot-py"
"""As torchvision names it."""
FETCHED = "torchvision"
LIMITS = ZipLimits(entries=25_000, entry_bytes=64 * 2**10, total_bytes=64 * 2**20)

BY_HAND = (
    "where there is a network, metabench data prepare omniglot downloads it; or put "
    "images_background.zip and images_evaluation.zip into omniglot/omniglot-py of the data folder"
)
GET = "get the official archive anew, or remove this one and run metabench data prepare omniglot"

_DRAWING = re.compile(r"(images_[a-z]+)/([^/]+/character\d\d)/\d{4}_\d\d\.png")
_REPORT_EVERY = 1000


@dataclass(frozen=True)
class Character:
    """What is known of a character of the official Omniglot, see `omniglot_classes.txt`.

    Attributes:
        name: `Alphabet/characterNN`.
        half: background or evaluation, the archive that it is in.
        vinyals: its split in Vinyals et al. 2016: train, validation or test.
        digest: 8 hexadecimal digits of the ink of its drawings, see `ink_digest`.
    """

    name: str
    half: str
    vinyals: str
    digest: str

    @property
    def alphabet(self) -> str:
        return self.name.split("/")[0]


def known_characters() -> tuple[Character, ...]:
    """The 1,623 characters, in the order of their names."""
    text = files("metabench_plugins.datasets") / "files" / "omniglot_classes.txt"
    lines = text.read_text(encoding="utf-8").splitlines()
    return tuple(Character(*line.split()) for line in lines if line and not line.startswith("#"))


def ink_digest(ink: NDArray[np.uint8]) -> str:
    """Tells one character's packed drawings (20, 105, 14) from others; 8 digits."""
    return content_digest(["ink"], np.array([0, len(ink)]), {"ink": ink})[:8]


def sources(home: DataHome) -> dict[str, list[Path]]:
    """Where each half can be read from: unzipped trees first, then zips; folders and files."""
    roots = [home.raw / FOLDER, *(place / FETCHED / FOLDER for place in home.downloads)]
    return halves_in(roots)


def halves_in(roots: list[Path]) -> dict[str, list[Path]]:
    """The places below `roots` where each half can be read from."""
    return {
        half: [root / half for root in roots if (root / half).is_dir()]
        + [root / f"{half}.zip" for root in roots if (root / f"{half}.zip").is_file()]
        for half in HALVES
    }


def read_ink(home: DataHome, report: Report) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Names of the characters, sorted, and their drawings, sorted by file name.

    Returns:
        the names, and ink (n * 20, 105, 14) uint8: `np.packbits` along the width, 1 is ink.

    Raises:
        DataMissingError: a half is not here.
        DataCorruptError: what is here is not the official Omniglot; names what differs.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    for half, places in sources(home).items():
        if not places:
            raise DataMissingError(f"{half} of omniglot is not in {home.raw / FOLDER}", BY_HAND)
        found |= _first_good(half, places, report)
    names = tuple(sorted(found))
    return names, np.concatenate([found[name] for name in names])


def _first_good(half: str, places: list[Path], report: Report) -> dict[str, NDArray[np.uint8]]:
    """The half from the first place that holds all of it; else the first place's fault."""
    faults: list[DataCorruptError] = []
    for place in places:
        try:
            found = _read_half(half, place, report)
            _check(half, place, found)
            return found
        except DataCorruptError as error:
            faults.append(error)
    raise faults[0]


def _read_half(half: str, place: Path, report: Report) -> dict[str, NDArray[np.uint8]]:
    ink: dict[str, list[NDArray[np.uint8]]] = {}
    with _opened(half, place) as (names, read):
        for i, name in enumerate(names):
            match = _DRAWING.fullmatch(name)
            if match is None or match[1] != half:
                continue  # a README, or what a file manager leaves behind
            if i % _REPORT_EVERY == 0:
                report(f"omniglot: reading {half}", i / len(names))
            ink.setdefault(match[2], []).append(_decode(read(name), f"{name} of {place}"))
    return {name: np.stack(drawings) for name, drawings in ink.items()}


@contextmanager
def _opened(half: str, place: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The sorted names of a tree's or a zip's files, and how to read one."""
    if place.is_dir():
        names = [path.relative_to(place.parent).as_posix() for path in place.glob("*/*/*.png")]
        yield sorted(names), lambda name: (place.parent / name).read_bytes()
    else:
        with open_zip(place, LIMITS) as archive:
            yield archive.names(), archive.read


def _decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """Packed ink (105, 14) of a PNG whose ink is black."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError(f"it is {image.size[0]}x{image.size[1]}, not {SIDE}x{SIDE}")
            pixels = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataCorruptError(f"{where} is not a drawing of omniglot: {error}", GET) from error
    return np.packbits(pixels == 0, axis=-1)


def _check(half: str, place: Path, found: dict[str, NDArray[np.uint8]]) -> None:
    """Raise DataCorruptError unless these are that half's official drawings."""
    known = {c.name: c.digest for c in known_characters() if f"images_{c.half}" == half}
    faults = [f"{name} is missing" for name in sorted(known.keys() - found.keys())]
    faults += [f"{name} is not one of it" for name in sorted(found.keys() - known.keys())]
    for name in sorted(known.keys() & found.keys()):
        if len(found[name]) != DRAWINGS:
            faults.append(f"{name} has {len(found[name])} drawings, not {DRAWINGS}")
        elif ink_digest(found[name]) != known[name]:
            faults.append(f"the drawings of {name} differ")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataCorruptError(
            f"{place} is not the official omniglot: {'; '.join(faults[:3])}{more}", GET
        )


def download(home: DataHome, report: Report) -> None:
    """Fetch both archives through torchvision, which checks them and shows their progress.

    Nothing is left behind if it is interrupted: both come at once or not at all.

    Raises:
        DataMissingError: no network, or the server does not have them.
        DataCorruptError: what came is not what torchvision expects.
        UsageError: there is no folder to write to.
    """
    from torchvision.datasets import Omniglot

    def fill(folder: Path) -> None:
        for done, half in enumerate(HALVES):
            report(f"omniglot: downloading {half}", done / len(HALVES))
            try:
                Omniglot(str(folder), background=half == HALVES[0], download=True)
            except OSError as error:
                raise DataMissingError(
                    f"omniglot cannot be downloaded: {error}", BY_HAND
                ) from error
            except RuntimeError as error:
                raise DataCorruptError(f"omniglot's download is damaged: {error}", GET) from error
            if (folder / FOLDER / f"{half}.zip").is_file():
                # Of what torchvision leaves, the archive is enough.
                shutil.rmtree(folder / FOLDER / half, ignore_errors=True)
        report("omniglot: downloading", 1.0)

    home.fetch(FETCHED, fill, lambda folder: all(halves_in([folder / FOLDER]).values()))
