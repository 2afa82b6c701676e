"""Fair play: the fastest of each side, turn by turn, and how two results are told equal."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from metabench.clock.compare import compare, matrix_product
from metabench.clock.spread import block_interval
from metabench.testing.peers.rows import NotMeasuredError, Row, Setting

Work = Callable[[], object]
SEED = 0
REFERENCES = 20
"""Calls of the reference before each measurement."""
FEWEST_FOR_INTERVAL = 6
"""Of fewer pairs the range is told: a bootstrap of them would say too little."""


class DifferentResultsError(Exception):
    """Ours and the peer's results differ: there is nothing to compare the times of."""


def fastest(candidates: Mapping[str, Work], repeats: int = 2) -> str:
    """The name of the candidate with the shortest time, each called once before, in turns."""
    if len(candidates) == 1:
        return next(iter(candidates))
    for work in candidates.values():
        work()
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(repeats):
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return min(best, key=best.__getitem__)


def compared(
    work: str, ours: Work, peer: Work, peer_name: str, setting: Setting, blocks: int
) -> Row:
    """A row of two functions that take seconds at most, in random ABBA blocks: `clock.compare`."""
    found = compare(ours, peer, blocks=blocks, seed=SEED, device=setting.device)
    times = found.a.median, found.b.median
    ratio = found.ratio, found.low, found.high
    return Row(work, *times, peer_name, *ratio, None, setting.on, blocks, found.drift)


def paired(
    work: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    peer_name: str,
    setting: Setting,
    pairs: int,
    *,
    of_times: bool = True,
) -> Row:
    """A row of what takes minutes, or of memory: pairs, in each of which chance says who is first.

    Half of the pairs begin with ours. The ratio is the median of the pairs' ratios.

    Args:
        ours, peer: measure once, and return the figure.
        of_times: whether it is a time: a fixed reference is timed before each then.
    """
    reference = seconds_of(matrix_product(torch.device("cpu")))
    mine: list[float] = []
    theirs: list[float] = []
    steady: list[float] = []
    first = np.random.default_rng(SEED).permutation(np.arange(pairs) % 2)
    for ours_first in first:
        for side in ((mine, ours), (theirs, peer))[:: 1 if ours_first else -1]:
            if of_times:
                steady.append(statistics.median([reference() for _ in range(REFERENCES)]))
            side[0].append(side[1]())
    ratios = np.array(theirs) / np.array(mine)
    low, high = float(ratios.min()), float(ratios.max())
    if pairs >= FEWEST_FOR_INTERVAL:
        low, high = block_interval(ratios, SEED, pairs)
    drift = (max(steady) - min(steady)) / statistics.median(steady) if steady else None
    return Row(
        work=work,
        ours=statistics.median(mine),
        peer=statistics.median(theirs),
        peer_name=peer_name,
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        goal=None,
        device=setting.on,
        blocks=pairs,
        drift=drift,
    )


def printed_by(module: str, *words: str) -> str:
    """What `python -m module words` prints, in a process of its own.

    Raises:
        NotMeasuredError: it failed.
    """
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(f"{module} {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def seconds_of(work: Work) -> Callable[[], float]:
    """A function that does the work and says how long it took."""

    def timed() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return timed


def check_close(
    what: str, ours: Sequence[Tensor], peer: Sequence[Tensor], tolerance: float
) -> None:
    """Raise DifferentResultsError unless the two, each as one vector, differ by little.

    Args:
        what: for the message.
        ours, peer: tensors of the same shapes, in the same order.
        tolerance: on the norm of the difference, as a fraction of that of ours.
    """
    a = torch.cat([tensor.detach().flatten().double() for tensor in ours])
    b = torch.cat([tensor.detach().flatten().double() for tensor in peer])
    difference = float((a - b).norm() / a.norm())
    if not difference <= tolerance:  # not a number is not equal either
        raise DifferentResultsError(f"{what}: differ by {difference:.1e}, allowed {tolerance:.0e}")
