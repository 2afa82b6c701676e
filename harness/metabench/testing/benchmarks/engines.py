"""Which engine was the fastest in the benchmarks: what the table behind `auto` is made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import geometric_mean
from typing import NamedTuple

from metabench.engine.modes import AUTO, ENGINES, EngineName


class EngineTime(NamedTuple):
    """A median of the inner-loop benchmark.

    Attributes:
        device: its type.
        order: of the outer gradient.
        pair: algorithm and backbone.
        engine: how the inner loop was run.
        seconds: of a meta-batch.
    """

    device: str
    order: int
    pair: tuple[str, str]
    engine: EngineName
    seconds: float


def told(times: Iterable[EngineTime]) -> Iterator[str]:
    """A line for each device and order: the engines' times as multiples of that of auto's choice.

    Each is a geometric mean over the pairs that were timed with both.
    """
    by_place: dict[tuple[str, int], dict[EngineName, dict[tuple[str, str], float]]] = {}
    for time in times:
        place = by_place.setdefault((time.device, time.order), {})
        place.setdefault(time.engine, {})[time.pair] = time.seconds
    for (device, order), by_engine in sorted(by_place.items()):
        chosen = AUTO[device][order]
        base = by_engine.pop(chosen, {})
        parts = []
        for engine in ENGINES:
            both = base.keys() & by_engine.get(engine, {}).keys()
            if both:
                ratio = geometric_mean(by_engine[engine][pair] / base[pair] for pair in both)
                parts.append(f"{engine} {ratio:.2f} ({len(both)})")
        if parts:
            yield (
                f"inner loop of order {order} on {device}, time over that of {chosen}, which auto"
                f" takes (number of networks): {', '.join(parts)}"
            )
