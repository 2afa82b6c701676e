"""The list of data sets: which are here, how large they are, under which licence, from where."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.data.folder import DataHome

if TYPE_CHECKING:
    from metabench.api.dataset import Dataset

Row = dict[str, str | int]


def list_data(datasets: Iterable[type[Dataset]], folder: Path) -> list[Row]:
    """One row a data set, by name.

    Args:
        datasets: the registered classes.
        folder: the data folder.

    Returns:
        rows with `name`, `state` (ready, unprepared or missing), `bytes` (on this disk),
        `download_bytes` (0 where it needs none any more), `licence`, `origin` and `path` (where it
        is, or where it would be put; empty where it can't be put anywhere).
    """
    return [_row(dataset, folder) for dataset in sorted(datasets, key=lambda d: d.name)]


def _row(dataset: type[Dataset], folder: Path) -> Row:
    home = DataHome(folder, dataset.name)
    state = dataset(folder).availability()
    there = next((place for place in home.places if place.exists()), home.writable())
    return {
        "name": dataset.name,
        "state": state,
        "bytes": home.size(),
        "download_bytes": dataset.download_bytes if state == "missing" else 0,
        "licence": dataset.licence,
        "origin": dataset.origin,
        "path": str(there or ""),
    }
