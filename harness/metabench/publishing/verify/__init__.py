"""Checking what was published or handed in: what holds, what doesn't, what can't be told here.

Nothing of it is executed, imported or unpickled. What a stranger wrote is parsed within limits
(`publishing.files`, `publishing.guarded`, `publishing.archive`), compared with what this
installation computes, and named in findings. That somebody didn't make up the predictions
themselves only running it again can show: `publishing.rerun`.
"""

from __future__ import annotations

from pathlib import Path

from metabench.publishing.files import Files
from metabench.publishing.verify.attached import check_attached
from metabench.publishing.verify.episodes import DataHere, check_episodes
from metabench.publishing.verify.identities import check_identities
from metabench.publishing.verify.numbers import check_numbers
from metabench.publishing.verify.plausible import check_apart, check_plausible
from metabench.publishing.verify.reading import check_nothing_stray, read_all
from metabench.publishing.verify.report import COLUMNS, CannotCheckError, Finding, Report
from metabench.registry import Registry

__all__ = ["COLUMNS", "CannotCheckError", "Finding", "Report", "verify_files"]


def verify_files(files: Files, registry: Registry, data_folder: Path | None = None) -> Report:
    """Check a folder of published tables, or a bundle.

    Args:
        files: with `submission.json` among them a bundle, else a folder.
        registry: what is installed here; names in the files are looked up in it and no more.
        data_folder: where data sets are; None: where they usually are. A data set that is there,
            or comes with its plugin, is prepared; nothing is downloaded.
    """
    from metabench.data.folder import data_folder as usual_folder

    report = Report(files.place)
    read = read_all(files, report)
    check_nothing_stray(read, report)
    here = DataHere(registry, data_folder or usual_folder(None))
    for row in read.rows():
        check_identities(row, registry, report)
        check_episodes(row, here, report)
        check_plausible(row, registry, report)
    check_apart(read, report)
    check_numbers(read, report)
    check_attached(read, report)
    return report
