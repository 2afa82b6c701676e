"""Timing a cell: warmed up, alone, by a fixed plan; what cannot be true is refused."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from metabench.api.algorithm import Algorithm
from metabench.clock.cuda import LAUNCH_BOUND, clocks, memory_peaks, reset_peaks, waits
from metabench.clock.flops import count_flops
from metabench.clock.kernels import profiled
from metabench.clock.parts import Part, PartName, parts_of
from metabench.clock.peak import Peak, measured_peak
from metabench.clock.spread import spread
from metabench.clock.stopwatch import Call, Reading, stopwatch
from metabench.clock.timer import ClockError
from metabench.clock.times import DeviceTimes, PartTimes, Times
from metabench.clock.window import collect_young, window
from metabench.engine import graphs
from metabench.engine.trial import Trial
from metabench.episodes.bank import ClassBank

WARM_UP = 3
"""Calls before the steady state; the first of them is told apart."""
LEAST_WARM_UP = 2
"""Of those, whatever they cost."""
UNTIL_TRUSTED = graphs.WARM_UP + graphs.CHECKS + 1
"""The calls after which a captured step is launched as a graph, or is known not to be one."""
FASTEST = 4.0
"""Nothing computes this many times faster than the machine's peak: a mistake, and refused."""
LONG_S = 0.5


@dataclass(frozen=True)
class TimingPlan:
    """How often each part of a cell is timed, from what a call of it costs.

    Attributes:
        seconds: what the samples of a part should take together.
        most: samples of a part at most.
        fewest: and at least, so that there are quartiles; 3 where a call takes over half a second.
    """

    seconds: float
    most: int
    fewest: int = 7

    def samples(self, cost_s: float) -> int:
        """How many samples are taken of a call that costs so much."""
        fewest = 3 if cost_s > LONG_S else self.fewest
        return max(fewest, min(self.most, int(self.seconds / max(cost_s, 1e-9))))


IN_RUN = TimingPlan(seconds=0.25, most=50)
"""Of the timing stage of a run."""


def plan_for(seconds: float) -> TimingPlan:
    """The plan that spends about so many seconds on a cell of three parts."""
    return TimingPlan(seconds=seconds / 3, most=2000)


def measure(
    trial: Trial,
    algorithm: Algorithm,
    bank: ClassBank | None = None,
    *,
    plan: TimingPlan = IN_RUN,
    kernels: bool = False,
) -> Times:
    """Time an algorithm as it stands; afterwards its weights are others.

    Args:
        trial: where its episodes and its training come from.
        algorithm: trained.
        bank: what it was built to be trained on, if not the usual split.
        plan: how often.
        kernels: say too where the time goes.

    Raises:
        ClockError: somebody replaced a clock, or a time is shorter than its arithmetic can be.
    """
    device = trial.device
    parts: dict[PartName, PartTimes] = {}
    with window(device) as conditions:
        peak = measured_peak(device, trial.precision)
        for part in parts_of(trial, algorithm, bank or trial.training_bank):
            engine = trial.engines.train if part.grad else trial.engines.test
            with torch.set_grad_enabled(part.grad), trial.computing(engine):
                captured = engine == "graph" and part.grad
                times = _timed(part, device, plan, UNTIL_TRUSTED if captured else LEAST_WARM_UP)
                # After the times: counting and profiling load much that a first call should show.
                times = _with_flops(part, times, peak)
                if kernels:
                    times = replace(times, kernels=tuple(profiled(part.at, device)))
            parts[part.name] = times
            collect_young()
    return Times(parts, conditions, str(trial.engines), trial.precision, peak, clocks(device))


def _timed(part: Part, device: torch.device, plan: TimingPlan, least: int) -> PartTimes:
    reset_peaks(device)
    watch = stopwatch(device)
    first, cost = _warmed_up(part.at, watch.read, plan, least)
    count = plan.samples(cost)
    readings = [watch.read(part.at(WARM_UP + number)) for number in range(count)]
    memory = memory_peaks(device)
    on_device: DeviceTimes | None = None
    if memory is not None:
        flushing = stopwatch(device, cold=True)
        cold = [flushing.read(part.at(WARM_UP + number)) for number in range(count)]
        on_device = _device_times(readings, cold, memory, waits(part.at(WARM_UP)))
    ms = spread([1e3 * reading.total for reading in readings])
    return PartTimes(ms, 1e3 * first, device=on_device)


def _warmed_up(
    at: Callable[[int], Call], read: Callable[[Call], Reading], plan: TimingPlan, least: int
) -> tuple[float, float]:
    """Seconds of the first call, and of a call once warmed up: by `least` calls, or some more."""
    costs: list[float] = []
    for number in range(max(least, WARM_UP)):
        if number < least or sum(costs[1:]) < plan.seconds:  # the first may have compiled
            costs.append(read(at(number)).total)
    return costs[0], min(costs)


def _device_times(
    hot: list[Reading], cold: list[Reading], memory: dict[str, int], waiting: bool
) -> DeviceTimes:
    def median_ms(seconds: Iterable[float | None]) -> float:
        return 1e3 * statistics.median(value or 0.0 for value in seconds)

    issued, total = median_ms([r.issued for r in hot]), median_ms([r.total for r in hot])
    return DeviceTimes(
        events=median_ms([r.device for r in hot]),
        cold=median_ms([r.total for r in cold]),
        cold_events=median_ms([r.device for r in cold]),
        launch_bound=None if waiting else issued > LAUNCH_BOUND * total,
        memory=memory,
    )


def _with_flops(part: Part, times: PartTimes, peak: Peak) -> PartTimes:
    """The same with counted operations and their share of the peak.

    Raises:
        ClockError: they can't have been done in that time.
    """
    found = count_flops(part.at(0))
    if found is None:
        return times
    share = found.counted / (times.ms.median / 1e3) / peak.flops
    if share > FASTEST:
        raise ClockError(
            f"{part.name} took {times.ms.median:.4g} ms for {found.counted:.3g} floating-point"
            f" operations: {share:.3g} times what this machine reaches at most"
            f" ({peak.flops / 1e9:.0f} GFLOP/s, {peak.source})",
            "something is wrong with the clock, or the algorithm keeps what it computed before",
        )
    return replace(times, flops=found.counted, uncounted=found.uncounted, share_of_peak=share)
