"""The rows of measurements/speed.csv: a piece of work, ours, the peer's, and the ratio."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metabench.rendering import to_csv


@dataclass(frozen=True)
class Row:
    """What came of a piece of work.

    Attributes:
        work: what was done, and in which unit.
        ours, peer: medians; times where the work does not say otherwise.
        peer_name: the library and its version; the fastest of those that can do it.
        ratio: how much better we are: over 1 is for us, whatever the unit.
        ratio_low, ratio_high: its 95% bootstrap interval over blocks; of fewer than 6 their range.
        goal: the ratio that was aimed for; None: a row that explains another.
        device: on what.
        blocks: ABBA blocks; pairs in random order, where one measurement takes minutes.
        drift: by how much the times of a fixed reference moved meanwhile, over their median; None
            for what is no time.
    """

    work: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    ratio_low: float
    ratio_high: float
    goal: float | None
    device: str
    blocks: int
    drift: float | None


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Setting:
    """How the works are measured.

    Attributes:
        device: cpu or cuda.
        threads: PyTorch threads, ours and the peer's.
        quick: small counts, for trying out; such rows are not written.
        blocks: ABBA blocks of a comparison; None: what the work takes by default.
        engines: of ours, the fastest of which is compared.
        data_folder: where data sets are.
    """

    device: str
    threads: int
    quick: bool
    blocks: int | None
    engines: tuple[str, ...]
    data_folder: Path

    @property
    def on(self) -> str:
        """What stands in the column `device`."""
        if self.device == "cuda":
            import torch

            return torch.cuda.get_device_name()
        return f"cpu, {self.threads} cores"

    def count(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def blocks_of(self, usual: int, quick: int = 2) -> int:
        return self.blocks or self.count(usual, quick)


class NotMeasuredError(Exception):
    """A work that cannot be measured here, and why."""


Measure = Callable[[Setting], Row]


@dataclass(frozen=True)
class Work:
    """A piece of work: its short name, the goal on the CPU, and the goal on a GPU, if it has one.

    `measure` makes the row; its `goal` is put in afterwards.
    """

    name: str
    goal: float | None
    measure: Measure
    gpu_goal: float | None = None
    on_gpu: bool = False


def installed(*packages: str) -> Iterator[str]:
    """Those of the packages that can be imported."""
    return (name for name in packages if importlib.util.find_spec(name) is not None)


def versioned(package: str) -> str:
    """The package with its version, as it stands in the column `peer_name`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a copy on the path
        return package


def write(rows: list[Row], path: Path, *, keep: bool) -> None:
    """Write the CSV; `keep`: the rows of works that were not measured this time stay."""
    import csv

    kept: dict[str, Mapping[str, Any]] = {}
    if keep and path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            kept = {_key(row): row for row in csv.DictReader(file)}
    kept |= {_key(asdict(row)): asdict(row) for row in rows}
    path.write_text(to_csv(list(kept.values()), COLUMNS), encoding="utf-8")


def _key(row: Mapping[str, Any]) -> str:
    # Behind a bracket stands how it was done this time.
    return f"{row['work'].partition(' (')[0]}|{row['device']}"
