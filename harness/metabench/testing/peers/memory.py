"""Peak memory of a long second-order meta-step, each measured in a process of its own.

    python -m metabench.testing.peers.memory WHO STEPS TASKS THREADS DEVICE

prints what one meta-step adds to the process, in MiB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import psutil
import torch

from metabench.api.items import one_episode
from metabench.engine.modes import EngineName
from metabench.testing.peers.fair import paired, printed_by
from metabench.testing.peers.inner_loops import PEERS, Make, MetaStep, present
from metabench.testing.peers.maml import (
    NO_PEER,
    QUICK_TASKS,
    TASKS,
    check_gradients,
    our_step,
)
from metabench.testing.peers.networks import (
    INNER_LR,
    default_layout,
    documented,
    made_up_bank,
    meta_batch,
    our_maml,
)
from metabench.testing.peers.rows import NotMeasuredError, Row, Setting, versioned
from metabench.testing.resident import peak_bytes

STEPS = 50
ENGINE: EngineName = "mixed"


def memory(setting: Setting) -> Row:
    """Peak memory over the baseline of a second-order meta-step of 50 inner steps, in MiB."""
    peers = present()
    if not peers:
        raise NotMeasuredError(NO_PEER)
    tasks = setting.count(TASKS, QUICK_TASKS)
    steps = setting.count(STEPS, 20)
    _check_long(peers, steps, setting.device)

    def of(who: str) -> Callable[[], float]:
        return lambda: _peak_in_fresh_process(who, steps, tasks, setting)

    least = min(peers, key=lambda name: of(name)())
    pairs = setting.blocks_of(5)
    work = (
        f"MAML second order, {steps} inner steps: peak memory over the baseline of a meta-step of "
        f"{tasks} tasks, conv4-64 (engine {ENGINE}, tasks one at a time) [MiB]"
    )
    who = of("ours"), of(least), versioned(least)
    return paired(work, *who, setting, pairs, of_times=False)


def _check_long(peers: dict[str, Make], steps: int, device: str) -> None:
    bank = made_up_bank()
    feed, batch = meta_batch(bank, 1, device)
    algorithm = our_maml(bank, 2, steps, device).train()
    for name, make in peers.items():
        check_gradients(algorithm, feed, batch, ENGINE, make, steps, name)


def _peak_in_fresh_process(who: str, steps: int, tasks: int, setting: Setting) -> float:
    numbers = [str(number) for number in (steps, tasks, setting.threads)]
    return float(printed_by("metabench.testing.peers.memory", who, *numbers, setting.device))


def peak_mib(who: str, steps: int, tasks: int, device: str) -> float:
    """MiB by which one meta-step raises this process's peak over what it held before.

    The same step with a single inner one goes before: kernels and thread pools are no part of it.
    """
    bank = made_up_bank()
    feed, batch = meta_batch(bank, tasks, device)

    def prepared(count: int) -> MetaStep:
        algorithm = our_maml(bank, 2, count, device).train()
        if who == "ours":
            return our_step(algorithm, feed, ENGINE)
        return PEERS[who](documented(algorithm), INNER_LR, count, 2)

    # Both give their freed memory back as PyTorch and the C library do by themselves.
    if who != "ours":
        batch = default_layout(batch)
    one = one_episode(batch, 0)
    prepared(1)(one)
    step = prepared(steps)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = psutil.Process().memory_info().rss
    step(batch)
    return (peak_bytes() - before) / 2**20


def main() -> None:
    """Of a fresh process: print the peak of one meta-step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", choices=["ours", *PEERS])
    for number in ("steps", "tasks", "threads"):
        parser.add_argument(number, type=int)
    parser.add_argument("device")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(peak_mib(asked.who, asked.steps, asked.tasks, asked.device))


if __name__ == "__main__":
    main()
