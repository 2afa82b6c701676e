"""Checks of a suite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from metabench.data.folder import data_folder
from metabench.errors import MetabenchError
from metabench.registry import Entry, Registry
from metabench.runner.bench import Workbench
from metabench.runner.cells import Cell
from metabench.runner.matrix import build_matrix
from metabench.runner.suite import Suite, load_suite
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError


@dataclass(frozen=True)
class SuiteSubject:
    """A suite that is checked.

    Attributes:
        entry: what is registered, or would be.
        registry: what its names are looked up in.
        path: of its file.
        folder: where data sets are; None: the user's data folder.
    """

    entry: Entry
    registry: Registry
    path: Path
    folder: Path | None = None

    @cached_property
    def suite(self) -> Suite:
        return load_suite(self.path)

    @cached_property
    def cells(self) -> list[Cell]:
        return build_matrix(self.suite, self.registry)


CHECKS = Checks()


@CHECKS.add("its file can be read, and has a summary of one line")
def file(subject: SuiteSubject) -> str:
    try:
        suite = subject.suite
    except MetabenchError as error:
        raise NonconformityError("a suite's TOML", str(error), subject.path) from error
    if not suite.summary.strip() or "\n" in suite.summary:
        raise NonconformityError("a summary of one line", f"{suite.summary!r}", subject.path)
    return suite.summary


@CHECKS.add("all that it names is registered, and every setting in it is possible")
def cells(subject: SuiteSubject) -> str:
    try:
        found = subject.cells
    except MetabenchError as error:
        raise NonconformityError(
            "a matrix of cells, each of registered plugins with valid settings",
            str(error),
            subject.path,
        ) from error
    if not found:
        raise NonconformityError("at least one cell", "it has none", subject.path)
    return f"{len(found)} cells"


@CHECKS.add("its data sets can serve its protocols, those that are on this machine")
def data(subject: SuiteSubject) -> str:
    bench = Workbench(subject.registry, data_folder(subject.folder), torch.device("cpu"))
    try:
        cells = subject.cells
    except MetabenchError as error:
        raise NotApplicableError("its cells can't be told") from error
    ready = [cell for cell in cells if bench.dataset(cell).availability() == "ready"]
    if not ready:
        names = sorted({cell.dataset.name for cell in cells})
        raise NotApplicableError(f"none of {', '.join(names)} is prepared on this machine")
    for cell in ready:
        try:
            bench.check(cell)
        except MetabenchError as error:
            raise NonconformityError(
                "each cell can be built on its data", str(error), subject.path
            ) from error
    return f"{len(ready)} of {len(cells)} cells"
