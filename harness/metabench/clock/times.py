"""What timing a cell comes to, and how it stands in the result folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from metabench.clock.kernels import Kernel
from metabench.clock.parts import PARTS, PartName
from metabench.clock.peak import Peak
from metabench.clock.spread import Spread
from metabench.clock.window import Conditions


@dataclass(frozen=True)
class DeviceTimes:
    """What a CUDA device's own clock says beside the host's, in milliseconds.

    Attributes:
        events: median between two events around the call.
        cold, cold_events: by the host's clock and by events, the L2 cache cold.
        launch_bound: issuing the kernels took most of the call: the device waited for the host.
            None where the call itself waits for the device, so that nobody can tell.
        memory: bytes allocated and reserved at most meanwhile.
    """

    events: float
    cold: float
    cold_events: float
    launch_bound: bool | None
    memory: Mapping[str, int]


@dataclass(frozen=True)
class PartTimes:
    """The times of one part of a cell.

    Attributes:
        ms: of one call, in milliseconds, in the steady state.
        first_ms: of the first call, with whatever is compiled or loaded in it.
        flops: counted operations of a call; None where they can't be counted.
        uncounted: operators that ran and aren't in `flops`.
        share_of_peak: what the counted operations come to, of what this machine reaches at most.
        device: None on the CPU.
        kernels: None unless they were asked for.
    """

    ms: Spread
    first_ms: float
    flops: int | None = None
    uncounted: tuple[str, ...] = ()
    share_of_peak: float | None = None
    device: DeviceTimes | None = None
    kernels: tuple[Kernel, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is None on the CPU or wasn't asked for is left out."""
        spread = self.ms
        table: dict[str, Any] = {
            "ms": spread.median,
            "iqr_ms": spread.iqr,
            "low_ms": spread.low,
            "high_ms": spread.high,
            "samples": spread.samples,
            "unstable": spread.unstable,
            "first_ms": self.first_ms,
            "flops": self.flops,
            "uncounted": list(self.uncounted),
            "share_of_peak": self.share_of_peak,
        }
        if self.device is not None:
            table["device"] = asdict(self.device)
        if self.kernels is not None:
            table["kernels"] = [asdict(kernel) for kernel in self.kernels]
        return table


@dataclass(frozen=True)
class Times:
    """The times of a cell: one episode, batch 1, from raw items; and a step of its training.

    Attributes:
        parts: by name; `train_step` is missing where the algorithm trains nothing by itself.
        conditions: under which they were taken.
        engine: how inner loops were run.
        precision: in which networks were computed.
        peak: what this machine reaches at most.
        clocks: of a CUDA device and why they were held back; None where nobody can tell.
    """

    parts: Mapping[PartName, PartTimes]
    conditions: Conditions
    engine: str
    precision: str
    peak: Peak
    clocks: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What stands in `timing/<machine>.json`.

        The first five are all that the first version of this file had; tables read these.
        """
        adapt, predict, step = (self.parts.get(name) for name in PARTS)
        assert adapt is not None
        assert predict is not None
        return {
            "adapt_ms": adapt.ms.median,
            "predict_ms": predict.ms.median,
            "adapt_iqr_ms": adapt.ms.iqr,
            "predict_iqr_ms": predict.ms.iqr,
            "episodes": adapt.ms.samples,
            "train_step_ms": step.ms.median if step else None,
            "unstable": [name for name, part in self.parts.items() if part.ms.unstable],
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "conditions": {
                **asdict(self.conditions),
                "cores": list(self.conditions.cores),
                "engine": self.engine,
                "precision": self.precision,
                "peak_flops": self.peak.flops,
                "peak_of": self.peak.source,
                **({"clocks": dict(self.clocks)} if self.clocks is not None else {}),
            },
        }
