"""What of the benchmark suite is asked for: which plugins, on which device, with which data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from metabench.registry import ARGUMENT, Entry, Kind, Registry
from metabench.runner.patterns import any_match


@dataclass(frozen=True)
class Asked:
    """Which benchmarks are run, and on what.

    Attributes:
        algorithms, backbones, datasets: shell-style patterns of registered names; none: all
            algorithms and data sets, and the backbone that was registered first.
        device: auto, cpu, cuda or cuda:N.
        data_folder: where data sets are; None: the user's data folder.
    """

    algorithms: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    device: str = "auto"
    data_folder: Path | None = None

    @property
    def narrowed(self) -> bool:
        """Whether only some plugins are asked for; then nothing is timed that has none in it."""
        return bool(self.algorithms or self.backbones or self.datasets)

    def algorithms_of(self, registry: Registry) -> list[str]:
        """The algorithms that are timed; none where only data sets are asked for."""
        if self.datasets and not (self.algorithms or self.backbones):
            return []
        return _matching("algorithm", self.algorithms or ("*",), registry)

    def backbones_of(self, registry: Registry) -> list[str]:
        """The backbones on which each of them is timed."""
        if self.backbones:
            return _matching("backbone", self.backbones, registry)
        return list(registry.backbones)[:1]

    def datasets_of(self, registry: Registry) -> list[str]:
        """The data sets whose start is timed; none where only algorithms are asked for."""
        if self.narrowed and not self.datasets:
            return []
        return _matching("dataset", self.datasets or ("*",), registry)

    def check(self, registry: Registry) -> None:
        """Raise UnknownNameError for a pattern that nothing registered matches."""
        self.algorithms_of(registry), self.backbones_of(registry), self.datasets_of(registry)


def _matching(kind: Kind, patterns: Iterable[str], registry: Registry) -> list[str]:
    entries: dict[str, Entry] = registry.of(kind)
    named = [p for p in patterns if ARGUMENT in p and registry.find(kind, p) is not None]
    for pattern in patterns:
        found = pattern in named or any(any_match([pattern], [name]) for name in entries)
        if pattern != "*" and not found:
            raise registry.unknown(kind, pattern)
    return [*(name for name in entries if any_match(patterns, [name])), *named]
