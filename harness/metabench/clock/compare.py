"""Two ways to do the same work, timed side by side: what is published is the ratio.

A and B run in blocks of ABBA or BAAB, drawn at random, so that a machine which slows down or is
shared disturbs both alike; a fixed reference in each block tells how much it was disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from metabench.clock.spread import Spread, block_interval, spread
from metabench.clock.stopwatch import Call, stopwatch
from metabench.clock.window import Conditions, window
from metabench.engine.numerics import one_thread_a_kernel

BLOCKS = 20
WARM_UP = 2


@dataclass(frozen=True)
class Comparison:
    """How A and B compare.

    Attributes:
        ratio: median over blocks of the time of B over that of A: above 1, A is faster.
        low, high: its 95% bootstrap interval over blocks.
        a, b: seconds of a call of either, over all blocks.
        drift: range between the deciles of the reference's times, over their median.
        blocks: how many.
        conditions: under which the times were taken.
    """

    ratio: float
    low: float
    high: float
    a: Spread
    b: Spread
    drift: float
    blocks: int
    conditions: Conditions


def compare(
    a: Call,
    b: Call,
    reference: Call | None = None,
    blocks: int = BLOCKS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Time two calls against each other.

    Args:
        a, b: do the same work; each is called twice before, and twice a block.
        reference: some fixed work that has nothing to do with either; None: a matrix product.
        blocks: 2 or more.
        seed: of the order within blocks, and of the interval.

    Raises:
        ClockError: somebody replaced a clock.
    """
    device = torch.device(device)
    read = stopwatch(device).read
    reference = reference or matrix_product(device)
    turned = np.random.default_rng(seed).integers(0, 2, blocks)
    times: dict[str, list[float]] = {"a": [], "b": [], "reference": []}
    calls: dict[str, Callable[[], object]] = {"a": a, "b": b, "reference": reference}
    with window(device) as conditions:
        for _ in range(WARM_UP):
            for call in calls.values():
                read(call)
        for turn in turned:
            reference()  # which finds caches and sleeping threads as the others left them
            for name in ("reference", *(("b", "a", "a", "b") if turn else ("a", "b", "b", "a"))):
                times[name].append(read(calls[name]).total)
    # (blocks,): the two calls of a block together.
    of_a, of_b = (np.reshape(times[name], (blocks, 2)).sum(1) for name in ("a", "b"))
    ratios = of_b / of_a
    # Each block is by itself what is drawn anew here.
    low, high = block_interval(ratios, seed, blocks)
    tenth, half, ninth = np.quantile(times["reference"], [0.1, 0.5, 0.9])
    return Comparison(
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
        a=spread(times["a"], seed),
        b=spread(times["b"], seed),
        drift=float((ninth - tenth) / half),
        blocks=blocks,
        conditions=conditions,
    )


def matrix_product(device: torch.device) -> Call:
    """A matrix product of some milliseconds on the CPU: work that no library does otherwise.

    In one thread there: how long sleeping threads take to wake up depends on what ran before.
    """
    side = 512 if device.type == "cpu" else 4096
    one, other = (torch.full((side, side), 0.5, device=device) for _ in range(2))

    def product() -> None:
        with one_thread_a_kernel():
            one @ other

    return product
