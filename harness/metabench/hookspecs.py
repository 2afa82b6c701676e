"""The pluggy hook specifications: how algorithms, backbones, data sets and suites come in.

A plugin is a module or object named by an entry point of the group `metabench`. It implements some
of these hooks:

    import metabench

    @metabench.hookimpl
    def metabench_register_algorithms():
        return [MyAlgorithm]

Nothing here imports PyTorch; a plugin that returns `Lazy` entries costs no import either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from metabench.api.algorithm import Algorithm
    from metabench.api.backbone import Backbone
    from metabench.api.dataset import Dataset

PROJECT = "metabench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Lazy:
    """A plugin class that is imported only when it is used; its facts are stated beside it.

    Attributes:
        name: the registered name.
        target: `package.module:Class`.
        family, inference, reference, summary: as on the class; inference is empty for what is not
            an algorithm.
        argument: as on the class: which hyper-parameter stands in `NAME:VALUE`; empty: none.
    """

    name: str
    target: str
    family: str = ""
    inference: str = ""
    reference: str = ""
    summary: str = ""
    argument: str = ""


@hookspec
def metabench_register_algorithms() -> Iterable[type[Algorithm] | Lazy]:  # type: ignore[empty-body]
    """Return the algorithms of this plugin, as classes or `Lazy` entries."""


@hookspec
def metabench_register_backbones() -> Iterable[type[Backbone] | Lazy]:  # type: ignore[empty-body]
    """Return the backbones of this plugin, as classes or `Lazy` entries."""


@hookspec
def metabench_register_datasets() -> Iterable[type[Dataset] | Lazy]:  # type: ignore[empty-body]
    """Return the data sets of this plugin, as classes or `Lazy` entries."""


@hookspec
def metabench_register_suites() -> Iterable[Path]:  # type: ignore[empty-body]
    """Return the suite files (TOML) of this plugin; the file's stem is the suite's name."""
