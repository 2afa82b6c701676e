"""Executors: how a job's end becomes a result, in this process and in workers."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from metabench.errors import NotANumberError, StoreError, UsageError
from metabench.runner import jobs
from metabench.runner.bench import Workbench
from metabench.runner.executors import Workers, _death
from metabench.runner.jobs import failure_of, stopping
from metabench.runner.plan import make_plan
from metabench.runner.worker import Place, write_note
from metabench.store.store import Store


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("bad"), "error", "bad"),
        (SystemExit("usage"), "error", "usage"),
        (BrokenError(), "error", ""),
        (NotANumberError("the loss is nan", "lower it"), "nan", "the loss is nan; lower it"),
        (MemoryError(), "out-of-memory", ""),
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory", "CUDA out of memory"),
        (RuntimeError("can't allocate memory: 8 bytes"), "out-of-memory", "can't allocate memory"),
        (RuntimeError("shapes differ"), "error", "shapes differ"),
    ],
)
def test_an_exception_becomes_a_typed_failure(error, status, message) -> None:
    failure = failure_of(error, "episodic 3/10")
    assert failure.status == status
    assert failure.exception == type(error).__name__
    assert failure.message.startswith(message)
    assert failure.where == "episodic 3/10"


def test_the_cpu_allocator_runs_out_of_memory_in_words_that_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert failure_of(caught.value, "").status == "out-of-memory"


def test_what_ends_the_whole_run() -> None:
    full = StoreError("the disk of x is full", "free some")
    assert stopping(full) is full
    plain = stopping(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    assert isinstance(plain, StoreError)
    assert "/tmp/x" in plain.message
    assert stopping(OSError(errno.ENOENT, "No such file")) is None
    assert stopping(ValueError("bad")) is None


def test_a_death_is_told_by_its_signal_or_code() -> None:
    assert _death(-signal.SIGKILL).startswith("its process was killed by SIGKILL (by the system")
    assert _death(-signal.SIGSEGV) == "its process was killed by SIGSEGV"
    assert _death(3) == "its process ended with exit code 3"
    assert _death(-1000) == "its process ended with exit code -1000"


def test_a_log_takes_what_is_logged_and_printed_and_collects_warnings(tmp_path: Path) -> None:
    warnings: list[str] = []
    logger = logging.getLogger("metabench")
    before = list(logger.handlers), logger.level, logger.propagate
    with jobs._logged_to(tmp_path / "log.txt", warnings, capture=True):
        logging.getLogger("metabench.train").info("at step %d", 3)
        logging.getLogger("metabench.cell").warning("mind %s", "this")
        os.write(1, b"printed by a library\n")
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    text = (tmp_path / "log.txt").read_text()
    assert "INFO at step 3" in text
    assert "WARNING mind this" in text
    assert "printed by a library" in text
    assert warnings == ["mind this"]


def test_a_note_is_whole_or_not_there(tmp_path: Path) -> None:
    write_note(tmp_path / "1.json", {"pid": 1})
    assert json.loads((tmp_path / "1.json").read_bytes()) == {"pid": 1}
    write_note(tmp_path / "nowhere" / "1.json", {"pid": 1})  # progress is not worth a cell
    assert [p.name for p in tmp_path.iterdir()] == ["1.json"]


MODULE = """
import os, time
from metabench import Algorithm, hookimpl
from metabench_plugins.algorithms.metric.protonet import ProtoNet


class Mine(ProtoNet):
    name = "mine"

    def training_loss(self, batch, ctx):
        time.sleep(0.05)
        return super().training_loss(batch, ctx)
"""


def workers(asked, classes=()) -> tuple[Workers, list, list]:
    """Workers with two slots, the plan's jobs, and the progress that is told."""
    bench = Workbench(asked.registry, asked.options.data_folder, asked.options.device)
    store = Store.open(asked.options.results)
    plan = make_plan(bench, store, asked.cells, suite="small.toml")
    told: list = []
    place = Place(store.root, asked.options.data_folder, "cpu", bench.unread, classes)
    return Workers(2, place, lambda job, p: told.append((job.key, p))), plan.jobs, told


def test_workers_import_a_class_and_tell_how_far_they_are(ask, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import their_module

    asked = ask(their_module.Mine, jobs=2, settings="mine.recipe.steps=40")
    pool, [job], told = workers(asked, (("their_module", "Mine"),))
    try:
        pool.start(job)
        ended, result = pool.wait()
        pids = {running.pid for running in pool._running.values()}
    finally:
        begun = time.monotonic()
        pool.close()
    assert time.monotonic() - begun < 5
    assert (ended.key, result.failure, pids) == (job.key, None, set())
    assert result.validation is not None
    assert {progress.phase for _, progress in told} >= {"episodic"}
    assert Store(asked.options.results).find(job.key) is not None
    assert not list((asked.options.results / "tmp").iterdir())
    del sys.modules["their_module"]


def test_a_class_that_workers_cannot_import_ends_the_run(ask, classes) -> None:
    asked = ask(classes["prototypes"])
    pool, [job], _ = workers(asked, (("no_such_module", "Prototypes"),))
    try:
        pool.start(job)
        _, result = pool.wait()
    finally:
        pool.close()
    assert isinstance(result.stop, UsageError)
    assert "cannot import no_such_module.Prototypes" in result.stop.message
