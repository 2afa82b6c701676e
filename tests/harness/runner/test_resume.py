"""A cell that is stopped anywhere and goes on comes to the same bytes as one that never was."""

from __future__ import annotations

import pytest

from metabench.engine.progress import Progress
from metabench.runner.jobs import Job
from metabench.runner.run import Unwatched
from metabench.store.record import CHECKPOINT, EPISODES, LOG, RECORD

REFIT = 'name = "protonet"\nrecipe = {refit = true}'
SHARED = 'name = "baseline"\nrecipe = {base = "supervised", steps = 40}'
MAML = """name = "maml"
hyperparameters = {inner_steps = 1}
recipe = {meta_batch = 2, schedule = "cosine", optimizer = "sgd", momentum = 0.9}"""
MAPPING = """name = "task-mapping"
hyperparameters = {tasks = 16, measured_tasks = 16, width = 8}
recipe = {steps = 12, batch_size = 8}"""
TUNED = """name = "finetune"
hyperparameters = {steps = [2, 1, 3], policy = "head"}
recipe = "supervised\""""
REPTILE = 'name = "reptile"\nhyperparameters = {inner_steps = 2, inner_steps_test = 2}'


class StopsAt(Unwatched):
    """Ctrl-C when a phase has come to some step for the n-th time."""

    def __init__(self, phase: str, step: int, time: int = 1) -> None:
        self.phase, self.step, self.time = phase, step, time

    def progress(self, job: Job, progress: Progress) -> None:
        if progress.phase == self.phase and progress.step >= self.step:
            self.time -= 1
            if self.time == 0:
                raise KeyboardInterrupt


def contents(experiment) -> dict[str, bytes]:
    [key] = experiment.outcome.plan.keys
    folder = experiment.store.folder(key)
    return {name: (folder / name).read_bytes() for name in (RECORD, EPISODES, CHECKPOINT)}


@pytest.mark.parametrize(
    ("algorithm", "phase", "step", "time", "goes_on"),
    [
        ("prototypes", "episodic", 6, 1, "from step 5 of 12"),
        (MAML, "episodic", 9, 1, "from step 8 of 12"),
        (REPTILE, "episodic", 7, 1, "from step 6 of 12"),
        (SHARED, "pretrain", 30, 1, "from step 29 of 40"),
        (MAPPING, "learn", 7, 1, "learn phase goes on from step 6 of 12"),
        (MAPPING, "measure", 1, 1, "learn phase goes on from step 12 of 12"),
        (TUNED, "steps", 2, 1, ""),  # chooses anew
        (REFIT, "episodic", 2, 14, ""),  # in the second training, on both splits
        ("prototypes", "test", 1, 1, "from step 12 of 12"),
    ],
    ids=[
        *("in training", "with momentum", "adam", "shared", "collected", "measuring", "choosing"),
        *("refit", "in the test"),
    ],
)
def test_going_on_gives_the_same_bytes(
    algorithm: str, phase: str, step: int, time: int, goes_on: str, ask, classes, monkeypatch
) -> None:
    wanted = classes.get(algorithm, algorithm)
    undisturbed = ask(wanted, out="undisturbed").run()
    monkeypatch.setenv("METABENCH_CHECKPOINT_SECONDS", "0")
    with pytest.raises(KeyboardInterrupt):
        ask(wanted).run(StopsAt(phase, step, time))
    monkeypatch.delenv("METABENCH_CHECKPOINT_SECONDS")
    resumed = ask(wanted).run()
    assert contents(resumed) == contents(undisturbed)
    logs = [
        p.read_text() for s in ("cells", "phases") for p in resumed.results.glob(f"{s}/*/{LOG}")
    ]
    assert any(goes_on in text for text in logs)
    assert not list(resumed.results.glob("partial/*/*"))
