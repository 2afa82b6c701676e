"""Fair play: the fastest of each side, turn by turn, and how two results are told equal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from metabench.clock.compare import compare
from metabench.testing.peers.rows import Row, Setting

Work = Callable[[], object]
SEED = 0
RESAMPLES = 2000


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
    return Row(work, *times, peer_name, found.ratio, found.low, found.high, 0.0, setting.on)


def row_of_pairs(
    work: str,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    setting: Setting,
) -> Row:
    """A row of pairs that were measured in turns: of memory, or of what takes minutes.

    The ratio is that of medians, its interval by resampling the pairs.
    """
    a, b = np.array(ours), np.array(peer)
    rng = np.random.default_rng(SEED)
    chosen = rng.integers(0, len(a), (RESAMPLES, len(a)))
    ratios = np.median(b[chosen], axis=1) / np.median(a[chosen], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    middle = statistics.median(ours), statistics.median(peer)
    ratio = middle[1] / middle[0]
    return Row(work, *middle, peer_name, ratio, float(low), float(high), 0.0, setting.on)


def in_turns(
    ours: Callable[[], float], peer: Callable[[], float], pairs: int
) -> tuple[list[float], list[float]]:
    """Measure both `pairs` times, each first in every other pair."""
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(pairs):
        if number % 2 == 0:
            mine.append(ours())
        theirs.append(peer())
        if number % 2 == 1:
            mine.append(ours())
    return mine, theirs


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
