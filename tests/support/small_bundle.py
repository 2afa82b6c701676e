"""A real run of seconds, once a process, and the bundle of it."""

from __future__ import annotations

import functools
from pathlib import Path

from small_suite import HEAD

from metabench.experiment.prepared import prepare
from metabench.plugins import registry
from metabench.publishing.bundle import bundle_files
from metabench.store.store import Store

SUITE = "small"
TABLES = """
[[algorithm]]
name = "protonet"

[[algorithm]]
name = "nearest-centroid"
variant = "untrained"
recipe = {steps = 0, validate_every = 0, select = "last"}
"""


@functools.cache
def small_run(data: Path) -> Path:
    """The result folder of two rows of three seeds; the suite is a file of somebody's."""
    folder = data.with_name(f"{data.name}-small-run")
    folder.mkdir()
    suite = folder / f"{SUITE}.toml"
    suite.write_text(HEAD + TABLES, encoding="utf-8")
    prepare(suite, seeds=3, out=folder / "out", data_dir=data, device="cpu").run()
    return folder / "out"


@functools.cache
def small_bundle(data: Path) -> dict[str, bytes]:
    """The files of its bundle; not to be changed."""
    return bundle_files(Store.open(small_run(data), create=False), SUITE, registry())
