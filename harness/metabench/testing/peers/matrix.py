"""The throughput of a matrix of cells: ours with its default jobs, a peer's loop, and one job.

    python -m metabench.testing.peers.matrix PEER CELLS STEPS TASKS

is that loop: one cell after the other, with PyTorch's default threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from metabench.api.recipe import Recipe
from metabench.engine.modes import resolve_engine
from metabench.engine.optim import make_optimizer
from metabench.testing.peers.fair import paired, printed_by, seconds_of
from metabench.testing.peers.inner_loops import PEERS, Make, present
from metabench.testing.peers.maml import check_gradients
from metabench.testing.peers.networks import (
    INNER_LR,
    default_layout,
    documented,
    made_up_bank,
    meta_batch,
    our_maml,
)
from metabench.testing.peers.rows import NotMeasuredError, Row, Setting, versioned

INNER_STEPS, TASKS = 5, 4
CELLS_A_CORE = 2
CHOOSING_STEPS = 10
"""Meta-steps by which the fastest peer is chosen."""
SUITE = """
summary = "MAML cells that differ in their seed"
seeds = {cells}

[[dataset]]
name = "quickdraw"

[[protocol]]
ways = 5
shots = 1
queries = 15
episodes = 2

[[backbone]]
name = "conv4"

[[algorithm]]
name = "maml"
hyperparameters = {{inner_lr = 0.01, inner_steps = {inner_steps}, batch_norm = "batch"}}
recipe = {{steps = {steps}, meta_batch = {tasks}, validate_every = 0, select = "last"}}
"""
QUICK_ROWS = ("maml", "protonet")


def throughput(setting: Setting) -> Row:
    """Whole runs: ours with data, start of the workers, test, timing stage and result folder.

    The peer's loop does nothing of these: it begins with its images in memory, and ends with the
    last meta-step. So short cells count against us.
    """
    peers = present()
    if not peers:
        raise NotMeasuredError("no peer is installed: pip install 'metabench[peers]'")
    cells = CELLS_A_CORE * setting.threads
    steps = setting.count(100, 10)

    def loop(name: str, cells: int, count: int) -> float:
        numbers = [str(number) for number in (cells, count, TASKS)]
        return float(printed_by("metabench.testing.peers.matrix", name, *numbers))

    _check(peers, setting)
    best = min(peers, key=lambda name: loop(name, 1, CHOOSING_STEPS))
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "maml-matrix.toml"
        filled = SUITE.format(cells=cells, inner_steps=INNER_STEPS, steps=steps, tasks=TASKS)
        suite.write_text(filled, encoding="utf-8")
        # The data set is prepared, and what is compiled once by Python is compiled.
        _run(setting, "-s", str(suite), "--set", "maml.recipe.steps=1", "--seeds", "1")
        work = (
            f"MAML second order: a matrix of {cells} cells of {steps} meta-steps of {TASKS} tasks, "
            f"conv4-64, 5w1s15q, {INNER_STEPS} inner steps, whole run [s]"
        )
        return paired(
            work,
            seconds_of(lambda: _run(setting, "-s", str(suite))),
            seconds_of(lambda: loop(best, cells, steps)),
            versioned(best),
            setting,
            setting.blocks_of(3, quick=1),
        )


def _check(peers: dict[str, Make], setting: Setting) -> None:
    """Both sides' meta-step is the same; only the images differ, on which no time depends."""
    bank = made_up_bank()
    feed, batch = meta_batch(bank, TASKS, "cpu")
    algorithm = our_maml(bank, 2, INNER_STEPS, "cpu").train()
    engine = resolve_engine("auto", "cpu", 2)
    for name, make in peers.items():
        check_gradients(
            algorithm, feed, batch, engine, make, INNER_STEPS, name, threads=setting.threads
        )


def suite_jobs(setting: Setting) -> Row:
    """The `fewshot` suite under 5w1s15q, one seed: default jobs against one."""
    part = ["-s", "fewshot", "-p", "5w1s", "--seeds", "1"]
    what = "5w1s15q, 1 seed"
    if setting.quick:
        part += [f"--algorithm={name}/" for name in QUICK_ROWS]
        part += ["--set", "*.recipe.steps=40", "--set", "*.recipe.validate_every=40"]
        what += f", {' and '.join(QUICK_ROWS)}, 40 steps"
    _run(setting, *part, "--set", "*.recipe.steps=1", "--set", "protocol.episodes=2")
    return paired(
        f"The fewshot suite, {what}: default jobs against --jobs 1 (one core), whole run [s]",
        seconds_of(lambda: _run(setting, *part)),
        seconds_of(lambda: _run(setting, *part, "--jobs", "1")),
        "metabench --jobs 1",
        setting,
        setting.blocks_of(2, quick=1),
    )


def _run(setting: Setting, *words: str) -> None:
    """`metabench run` into a result folder that is lost."""
    with tempfile.TemporaryDirectory() as out:
        folders = ["--out", out, "--data-dir", str(setting.data_folder)]
        printed_by("metabench", "run", *words, *folders, "--device", setting.device, "--quiet")


def train_loop(name: str, cells: int, steps: int, tasks: int) -> float:
    """Train cells one after the other, as a script of that peer does; episodes come from us.

    Returns:
        seconds, without what it takes to start.
    """
    bank = made_up_bank()
    begun = time.perf_counter()
    for _ in range(cells):
        network = documented(our_maml(bank, 2, INNER_STEPS, "cpu").train())
        optimizer = make_optimizer(Recipe(), list(network.parameters()))
        step = PEERS[name](network, INNER_LR, INNER_STEPS, 2)
        feed, _ = meta_batch(bank, tasks, "cpu")
        for number in range(steps):
            step(default_layout(feed.batch(number)[1]))
            optimizer.step()
    return time.perf_counter() - begun


def main() -> None:
    """Of a fresh process: the peer's loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=list(PEERS))
    for number in ("cells", "steps", "tasks"):
        parser.add_argument(number, type=int)
    asked = parser.parse_args()
    print(train_loop(asked.peer, asked.cells, asked.steps, asked.tasks))


if __name__ == "__main__":
    main()
