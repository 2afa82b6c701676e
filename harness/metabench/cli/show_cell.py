"""Pages on cells: what they are, what came out, how they failed, how to run them again."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.cli.page import Page, Quote, Table, facts
from metabench.cli.sizes import size_text
from metabench.errors import UnknownNameError, UsageError
from metabench.plugins import registry
from metabench.rendering import Row

if TYPE_CHECKING:
    from metabench.store.record import CellRecord, FailedCell, RunInfo
    from metabench.store.store import Store

LOG = "log.txt"
LOG_LINES = 20
LOG_BYTES = 64 * 1024
TIMES = (
    *("machine", "adapt_ms", "adapt_iqr_ms", "predict_ms", "predict_iqr_ms", "train_step_ms"),
    "episodes",
)
_PREFIX = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class Found:
    """A cell in a result folder.

    Attributes:
        key: its key.
        id: as the latest run that named it has it; empty where no suite refers to it.
        suites: that refer to it.
        commands: the line that runs it again in each of these, as it was noted.
    """

    key: str
    id: str
    suites: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def find_cell(store: Store, name: str) -> Found:
    """The cell of a key, of the first digits of one, or of an id.

    Raises:
        UsageError: several could be meant.
        UnknownNameError: there is none; names the nearest.
    """
    from metabench.leaderboard.members import labelled
    from metabench.store.shelf import keys_in

    noted: dict[tuple[str, str], dict[str, str]] = {}
    for suite in store.suites():
        for member, labels in labelled(store.suite(suite), suite):
            noted.setdefault((member.key, labels.id), {})[suite] = member.command
    cells = [
        Found(key, id_, tuple(suites), tuple(suites.values()))
        for (key, id_), suites in noted.items()
    ]
    others = {*store.cells.keys(), *keys_in(store.root / "failed")} - {c.key for c in cells}
    cells += [Found(key, "") for key in sorted(others)]
    found = [cell for cell in cells if cell.id == name]
    if not found and _PREFIX.fullmatch(name):
        found = [cell for cell in cells if cell.key.startswith(name)]
    if len({cell.key for cell in found}) > 1:
        raise _several(name, found)
    if not found:
        raise _unknown(store, name, [cell.id for cell in cells if cell.id])
    # Suites may have the same cell under different ids.
    alike = [cell for cell in cells if cell.key == found[0].key]
    return Found(
        found[0].key,
        found[0].id,
        tuple(suite for cell in alike for suite in cell.suites),
        tuple(line for cell in alike for line in cell.commands),
    )


def _several(name: str, found: Iterable[Found]) -> UsageError:
    cells = [f"{cell.key[:8]} ({', '.join([cell.id, *cell.suites])})" for cell in found]
    return UsageError(
        f"{name!r} could be several cells", f"name one by its key: {'; '.join(cells)}"
    )


def _unknown(store: Store, name: str, ids: list[str]) -> UnknownNameError:
    near = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
    return UnknownNameError(
        f"there is no cell {name!r} in {store.root}",
        f"did you mean {near[0]!r}?" if near else "metabench status counts what there is",
    )


def cell_page(store: Store, found: Found) -> Page:
    """The page on a cell, finished, failed or not run yet."""
    record = store.find(found.key)
    failed = None if record else store.failure(found.key)
    status = "ok" if record else failed.failure.status if failed else "missing"
    table: dict[str, object] = {
        "key": found.key,
        "suites": ", ".join(found.suites) or "none (metabench clean would delete it)",
        "status": status,
    }
    page = Page(f"cell {found.id or found.key}", {"kind": "cell", "id": found.id, **table})
    page.add("", facts(table))
    if record is not None:
        _add_finished(page, store, record)
    if failed is not None:
        _add_failed(page, failed)
    log = _log_file(store, found.key)
    tail = log_tail(log)
    page.data["log"] = tail
    page.add(f"the end of {log}", Quote(tail))
    ran = store.run_info(found.key) if failed is None else failed.run
    if found.commands or ran.command:
        _add_command(page, [*found.commands, ran.command])
    return page


def _add_finished(page: Page, store: Store, record: CellRecord) -> None:
    scores = store.episodes(record.key).scores(str(record.identity.protocol.get("metric")))
    result: dict[str, object] = {
        **record.result.model_dump(mode="json", exclude={"figures"}),
        "score": float(scores.mean()),
        "inference": record.inference,
        "shared phases": ", ".join(key[:8] for key in record.phases),
    }
    page.data["record"] = record.to_json()
    page.data["timings"] = store.timings(record.key)
    shown = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in result.items()}
    page.add("result", facts(shown))
    if record.result.figures:
        told: dict[str, object] = {
            name: f"{value:.4f}" for name, value in record.result.figures.items()
        }
        page.add("measured by the algorithm itself, on meta-validation", facts(told))
    _add_identity(page, record.identity.to_json())
    _add_run(page, store.run_info(record.key))
    times: list[Row] = [
        {"machine": machine, **times} for machine, times in store.timings(record.key).items()
    ]
    page.add("times in milliseconds", Table(times, TIMES))
    names = {name: size_text(facts_.size) for name, facts_ in record.files.items()}
    page.add(f"files in {store.folder(record.key)}", facts(dict(names)))


def _add_failed(page: Page, failed: FailedCell) -> None:
    failure = failed.failure
    page.data["failure"] = failed.model_dump(mode="json")
    what = f"{failure.exception}: {failure.message}" if failure.exception else failure.message
    page.add("failure", facts({"status": failure.status, "where": failure.where, "error": what}))
    page.add("traceback", Quote(failure.traceback))
    _add_identity(page, failed.identity.to_json())
    _add_run(page, failed.run)


def _add_identity(page: Page, identity: dict[str, Any]) -> None:
    """Everything that decides the cell's numbers, a line for each part."""
    from metabench.runner.checked import shown_settings

    parts = {
        name: shown_settings(part) if isinstance(part, dict) else part
        for name, part in identity.items()
        if name != "schema_version"
    }
    page.add("identity", facts(parts))


def _add_run(page: Page, run: RunInfo) -> None:
    page.data["run"] = run.model_dump(mode="json")
    page.add("ran on", facts(run.model_dump(mode="json", exclude={"command"})))


def _add_command(page: Page, noted: Iterable[str]) -> None:
    """The first of these lines that can be typed here; if none can, the first of all."""
    from metabench.leaderboard.commands import cell_command, suite_of

    known = registry().suites
    lines = list(filter(None, map(cell_command, noted)))
    here = [line for line in lines if suite_of(line) in known or Path(suite_of(line)).is_file()]
    line = next(iter(here or lines), "")
    page.data["command"] = line
    page.add("to run it again", Quote(line))


def _log_file(store: Store, key: str) -> Path:
    """Of a finished or failed cell, else of the training that goes on, or was broken off."""
    folders = [store.folder(key), store.failure_folder(key)]
    folders += sorted((store.root / "partial" / key).glob("*-*"))
    files = [folder / LOG for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def log_tail(path: Path) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-LOG_LINES:])
